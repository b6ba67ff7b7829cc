"""The report in a real browser: it opens from disk offline, draws its curves, sorts its tables, runs no injection.

Nothing hangs over at 1400, 800 and 500 pixels, nor on paper; it is dark where the browser is, and has pictures where no
script runs.
"""

import html
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import commands
import pytest
from made_results import classification, regression

from meta_exp.comparison import charts, plots, report
from meta_exp.comparison.results import Result, differences, group

HOSTILE = "\x1b[2J\u202e\x9b<script>document.title = 'owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000"]

# by how much the page is wider than its window, and whatever scrolls by itself wider than its place
OVER = """const over = node => node.scrollWidth - node.clientWidth;
    document.body.dataset.over = over(document.documentElement);
    document.body.dataset.cut = Math.max(...[...document.querySelectorAll(".scroll, figure")].map(over));"""


def hostile(result: Result) -> Result:
    keys = dict(result.keys) | {"choices.algorithm": HOSTILE, "dataset.root": HOSTILE}
    made_by = {"version/torch": HOSTILE}
    return Result(Path(HOSTILE), keys, result.scores, result.metric, f"uv run {HOSTILE}", result.curve, made_by)


def write(folder: Path, *results: Result) -> Path:
    configurations, words = group(results), str(results[-1].folder)
    file, picture = folder / "report.html", folder / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    drawn, pairs = plots.draw_charts(charts.charts(configurations), folder), list(differences(configurations))
    left_out, shown = {Path(words): words}, {words: picture}
    report.write(file, configurations, pairs, drawn, shown, left_out, [words], {"version/x": words})
    return file


@pytest.fixture
def written(tmp_path):
    """A report of four configurations, one of them hostile in every name."""
    return write(
        tmp_path, regression(0, 0.1), regression(0, 0.5, best=True), classification(), hostile(regression(0, 0.9))
    )


def pair(seed: int, gap: float) -> list[Result]:
    """MAML and a LLAMA whose MSE is larger by ``gap``, with all that a regression is scored by."""
    results = []
    for algorithm in ("maml", "llama"):
        run = regression(seed, 0.1, best=True)
        more = {f"map/{name}": run.scores.each["map/mse"] for name in ("crps", "conformal_width_90", "auroc")}
        each = {**run.scores.each, **more}
        if algorithm == "llama":
            each["map/mse"] = each["map/mse"] + gap + 0.001 * seed
        keys = {**run.keys, "choices.algorithm": algorithm}
        results.append(replace(run, keys=keys, scores=run.scores._replace(each=each)))
    return results


@pytest.fixture
def wide(tmp_path):
    """A report of two algorithms with five seeds and all scores of a regression."""
    return write(tmp_path, *(run for seed in range(5) for run in pair(seed, 0.5)))


def test_file_is_whole_and_asks_for_nothing_else(written):
    text = written.read_text()
    assert "default-src 'none'" in text
    own = text.replace(re.search(r"<script nonce=\S+>.*?</script>", text, re.S)[0], "")  # without plotly's source
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", own.split("<script nonce")[0])
    assert "<img src=x" not in text
    assert all(letter.isprintable() or letter == "\n" for letter in own), "whatever reads the file may be a terminal"
    assert r"\x1b[2J\u202e\x9b&lt;script" in own
    assert own.count("<script") == own.count("<script nonce=") == 1
    assert "<td>bayes</td>" in text
    assert "regret is the NLL above its" in text
    assert not list(written.parent.glob("*.part"))


def dom(file: Path, profile: Path, *arguments: str) -> str:
    """The page as the browser holds it when its scripts have run."""
    command = [str(BROWSER), *QUIET, f"--user-data-dir={profile}", *arguments, "--dump-dom", file.as_uri()]
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    done = commands.finished(command, variables=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian's package: chromium)")


def ask(file: Path, script: str, *arguments: str) -> tuple[dict[str, str], str]:
    """What a script, run at the page's end, has said in the dataset of its body, and the page."""
    text = file.read_text()
    nonce = re.search(r"'nonce-([^']+)'", text)[1]
    asked = file.with_name("asked.html")
    asked.write_text(text.replace("</body>", f'<script nonce="{nonce}">{{{script}}}</script></body>'))
    page = dom(asked, file.with_name("profile"), *arguments)
    [body] = re.findall(r"<body([^>]*)>", page)
    return {key: html.unescape(value) for key, value in re.findall(r'data-(\w+)="([^"]*)"', body)}, page


SORT = """
    const heads = [...document.querySelectorAll("#scores th")];
    const column = name => heads.findIndex(th => th.textContent.startsWith(name));
    const cells = name => [...document.querySelectorAll("#scores tbody tr")].map(row => row.cells[column(name)]);
    const value = cell => cell.dataset.value ?? "";
    const sorted = name => { heads[column(name)].firstChild.click(); return cells(name).map(value); };
    sorted("predictive");
    document.body.dataset.up = sorted("MSE").join();
    document.body.dataset.down = sorted("MSE").join();
    document.body.dataset.blanks = [1, 2].map(() => sorted("regret").map(words => words ? "x" : "-").join(""));"""


@needs_browser
def test_opens_offline_draws_and_sorts(written):
    """Blanks come last, whichever way."""
    said, page = ask(written, SORT + OVER, "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,900")
    assert "owned" not in re.search(r"<title>(.*?)</title>", page)[1]
    assert page.count('class="main-svg"') >= 2 * page.count('id="chart-')  # plotly has drawn each chart
    up, down = (said[way].split(",") for way in ("up", "down"))
    numbers = [float(value) for value in up if value]
    assert len(numbers) == 4
    assert numbers == sorted(numbers)
    assert [float(value) for value in down if value] == numbers[::-1]
    assert up[-1] == down[-1] == ""
    assert said["blanks"] == "x----,x----"
    assert said["over"] == "0"
    assert html.escape("<script>document.title", quote=False) in page  # the name stands there as it is


LOOK = """
    const table = document.querySelector("#scores").parentNode;
    const left = () => document.querySelector("#scores td").getBoundingClientRect().left;
    const before = left(); table.scrollLeft = 100;
    document.body.dataset.moved = [table.scrollLeft, left() - before].join();
    document.body.dataset.back = getComputedStyle(document.body).backgroundColor;
    document.body.dataset.line = document.querySelector("#chart-steps_mse .js-line").style.stroke;"""


@needs_browser
@pytest.mark.parametrize(
    ("width", "scheme", "back", "line"),
    [
        (1400, "preferredColorScheme=1", "rgb(255, 255, 255)", "rgb(31, 78, 140)"),
        (800, "preferredColorScheme=0", "rgb(23, 24, 27)", "rgb(125, 179, 242)"),
    ],
    ids=["wide and light", "narrow and dark"],
)
def test_nothing_is_cut_in_a_wide_window_and_tables_scroll_in_a_narrow_one(wide, width, scheme, back, line):
    """Their first column stays then; the colours are those that the browser asks for."""
    said, _ = ask(wide, OVER + LOOK, f"--window-size={width},900", f"--blink-settings={scheme}")
    assert said["over"] == "0"
    assert (int(said["cut"]) > 0) == (width == 800)
    assert said["moved"] == ("100,0" if width == 800 else "0,0")
    assert (said["back"], said["line"]) == (back, line)


@needs_browser
def test_a_chart_of_many_long_names_keeps_its_height_and_all_of_its_legend(tmp_path):
    """As high as both ask, without a bar to scroll by; and the exact predictor of all stands in it once."""
    keys = {"choices.algorithm": "llama_predictive", "model.widths": "[128, 128, 128, 64]"}
    runs = [replace(run, keys=run.keys | keys) for run in (regression(0, i / 10, best=True) for i in range(30))]
    look = """
    const chart = document.querySelector("#chart-steps_mse");
    const legend = chart.querySelector(".legend").getBoundingClientRect(), place = chart.getBoundingClientRect();
    const axis = chart.querySelector(".xtitle").getBoundingClientRect();
    document.body.dataset.axes = chart._fullLayout._size.h;
    document.body.dataset.names = [...chart.querySelectorAll(".legendtext")].map(node => node.textContent).join("|");
    document.body.dataset.free = [legend.top > axis.bottom, legend.bottom <= place.bottom].join();
    document.body.dataset.scrolls = [...document.querySelectorAll(".legend .scrollbar")]
        .filter(bar => Number(bar.getAttribute("height"))).length;"""
    said, _ = ask(write(tmp_path, *runs), OVER + look, "--window-size=800,900")
    names = said["names"].split("|")
    assert len(names) == 31
    assert names.count("Bayes-optimal") == 1
    assert float(said["axes"]) > 250
    assert (said["free"], said["scrolls"], said["over"]) == ("true,true", "0", "0")


@needs_browser
def test_nothing_hangs_over_a_narrow_window_whatever_names_hold(written):
    assert ask(written, OVER, "--window-size=500,900")[0]["over"] == "0"


@needs_browser
def test_paper_has_all_of_it_and_pictures_for_charts(wide):
    """A page of A4 is 1032 pixels wide between its margins; the rules for print hold for the screen here."""
    wide.write_text(wide.read_text().replace("@media print", "@media all"))
    shown = """
    const seen = name => [...document.querySelectorAll(name)].filter(node => node.offsetParent).length;
    document.body.dataset.seen = [seen(".still"), seen(".interactive")].join();"""
    said, page = ask(wide, OVER + shown, "--window-size=1032,900")
    assert (said["over"], said["cut"]) == ("0", "0")
    stills = page.count('class="still"')
    assert said["seen"] == f"{stills},0"


@needs_browser
def test_it_prints_on_a4(wide):
    pdf = wide.with_suffix(".pdf")
    command = [str(BROWSER), *QUIET, f"--user-data-dir={wide.with_name('profile')}", f"--print-to-pdf={pdf}"]
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
    assert commands.finished([*command, wide.as_uri()], variables=environment).returncode == 0
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf.read_bytes())
    assert {(round(float(width)), round(float(height))) for width, height in boxes} == {(842, 595)}


def test_without_scripts_pictures_stand_for_the_charts(wide):
    """Only the script's last line hides them."""
    text = wide.read_text()
    own = text.replace(re.search(r"<script nonce=\S+>.*?</script>", text, re.S)[0], "")
    page, script = own.split("<script nonce")
    assert page.count('<img class="still"') == page.count('class="interactive"') == 5
    assert page.count('class="still" alt="MSE by inner steps" src="data:image/png;base64,iVBOR') == 1
    assert ".drawn .still { display: none; }" in page
    assert script.index("Plotly.react") < script.index('classList.add("drawn")')


def test_differences_name_their_algorithms_and_are_bold_from_five_seeds(wide, tmp_path):
    """Two seeds can agree by chance to the last digit; and who looks at twenty scores finds one."""
    text = wide.read_text()
    assert "<h2>llama minus maml</h2>" in text
    bold = re.findall(r"<b>\s*(\S+)", text.split('id="differences"')[1].split("</table>")[0])
    assert [float(figure) for figure in bold] == [pytest.approx(0.502)]
    assert "11 differences are looked at: were there none, about 0.55 intervals would exclude 0. Bold: so do" in text
    few = write(tmp_path, *(run for seed in range(4) for run in pair(seed, 0.5))).read_text()
    assert "<b>" not in few.split('id="differences"')[1].split("</table>")[0]
    assert "None is bold: that takes 5 seeds." in few


def test_hover_says_the_half_width_the_range_and_the_zero():
    runs = [regression(seed, eta) for seed in (0, 1) for eta in (0.0, 0.1, 1.0, 10.0)]
    drawn = {chart.name: chart for chart in charts.charts(group(runs))}
    said = {name: report.figure(chart).data[0].hovertext for name, chart in drawn.items()}
    assert said["steps_mse"][1] == "inner steps 1: 1 ± 6.4"
    assert said["learning"][0] == "step 10: 3.5 (3 to 4)"
    assert said["sweep_eta_mse"][0] == "eta 0: 1 ± 6.4"
    assert report.figure(drawn["steps_mse"]).layout.xaxis.dtick == 1
    assert list(report.figure(drawn["sweep_eta_mse"]).layout.xaxis.ticktext) == ["0", "0.1", "1", "10"]


def test_keys_that_differ_run_down_where_they_are_more_than_the_configurations(written):
    table = written.read_text().split("Where the configs differ")[1].split("</table>")[0]
    assert re.findall(r"<th>(.*?)</th>", table)[:2] == ["configuration", "seeds"]
    few = [regression(), classification()]
    few[1] = replace(few[1], keys={**few[1].keys, "a": 1, "b": 2})
    rows = report._differing(group(few))
    assert rows[0] == ["configuration", "llama", "maml"]
    assert ["b", "-", 2] in rows
