"""The report in a real browser: it opens from disk offline, draws its curves, sorts its tables, runs no injection."""

import html
import os
import re
import shutil
from pathlib import Path

import commands
import pytest
from made_results import classification, regression

from meta_exp.comparison import charts, report
from meta_exp.comparison.results import Result, differences, group

HOSTILE = "<script>document.title = 'owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000"]

# by how much the page is wider than its window: wide tables are to scroll by themselves
OVER = "const root = document.documentElement; document.body.dataset.over = root.scrollWidth - root.clientWidth;"


def hostile(result: Result) -> Result:
    keys = dict(result.keys) | {"choices.algorithm": HOSTILE, "dataset.root": HOSTILE}
    made_by = {"version/torch": HOSTILE}
    return Result(Path(HOSTILE), keys, result.scores, result.metric, f"uv run {HOSTILE}", result.curve, made_by)


@pytest.fixture
def written(tmp_path):
    """A report of four configurations, one of them hostile in every name."""
    results = [regression(0, 0.1), regression(0, 0.5, best=True), classification(), hostile(regression(0, 0.9))]
    configurations = group(results)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    file = tmp_path / "report.html"
    drawn, pairs = charts.charts(configurations), list(differences(configurations))
    left_out = {Path(HOSTILE): HOSTILE}
    report.write(file, configurations, pairs, drawn, {HOSTILE: picture}, left_out, [HOSTILE], {"version/x": HOSTILE})
    return file


def test_file_is_whole_and_asks_for_nothing_else(written):
    text = written.read_text()
    assert "default-src 'none'" in text
    own = text.replace(re.search(r"<script nonce=\S+>.*?</script>", text, re.S)[0], "")  # without plotly's source
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", own.split("<script nonce")[0])
    assert "<img src=x" not in text
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


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian's package: chromium)")
def test_opens_offline_draws_and_sorts(written, tmp_path):
    nonce = re.search(r"'nonce-([^']+)'", written.read_text())[1]
    click = f"""<script nonce="{nonce}">
    const column = [...document.querySelectorAll("#scores th")].findIndex(th => th.textContent.startsWith("MSE"));
    const cells = () => [...document.querySelectorAll("#scores tbody tr")].map(row => row.cells[column].dataset.value);
    const button = document.querySelectorAll("#scores th")[column].firstChild;
    document.querySelectorAll("#scores th")[0].firstChild.click();
    button.click(); document.body.dataset.up = cells().join();
    button.click(); document.body.dataset.down = cells().join();
    {OVER}</script></body>"""
    written.write_text(written.read_text().replace("</body>", click))
    page = dom(written, tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,900")
    assert "owned" not in re.search(r"<title>(.*?)</title>", page)[1]
    assert page.count('class="main-svg"') >= 2 * page.count('id="chart-')  # plotly has drawn each chart
    up, down = (re.search(rf'data-{way}="([^"]*)"', page)[1].split(",") for way in ("up", "down"))
    numbers = [float(value) for value in up if value]
    assert numbers == sorted(numbers)
    assert [float(value) for value in down if value] == numbers[::-1]
    assert re.search(r'data-over="(-?\d+)"', page)[1] == "0"
    assert html.escape("<script>document.title", quote=False) in page  # the name stands there as it is


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian's package: chromium)")
def test_nothing_hangs_over_a_narrow_window(written, tmp_path):
    nonce = re.search(r"'nonce-([^']+)'", written.read_text())[1]
    written.write_text(written.read_text().replace("</body>", f'<script nonce="{nonce}">{OVER}</script></body>'))
    page = dom(written, tmp_path / "profile", "--window-size=500,900")
    assert re.search(r'data-over="(-?\d+)"', page)[1] == "0"
