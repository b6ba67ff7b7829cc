"""The table of metrics.json's keys in docs/evaluation.md, held to what runs write, and the other way round."""

import json
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
TABLE = PAGE.split("## Keys of metrics.json")[1].split("\n## ")[0]
PLACES = {
    "<predictive>": "(map|sample|linearized)",
    "<metric>": "(accuracy|mse)",
    "<q>": "(50|80|90|95)",
    "<k>": r"\d+",
    "<learned>": "(sigma_noise|prior_precision|temperature)",
    "<package>": r"[\w-]+",
    "<own>": "near",  # docs/extend.md's
}
ELSEWHERE = {"failed_tasks", "test/<predictive>/<own>"}  # tests/runs/test_test_set.py, tests/test_extend.py
RUNS = {
    "keys_sinusoid": [
        "algorithm=llama_predictive",
        "dataset.noise=0.3",
        "conformal_tasks=20",
        "predictives=[map,sample,linearized]",
    ],
    "keys_hessian": ["algorithm=llama", "curvature=hessian", "model.widths=[4]"],
    "keys_images": ["algorithm=llama", "dataset=image_folder", "curvature=last_layer", "chunk_size=auto"],
}
IMAGES = ["likelihood=probit", "model.filters=4", "dataset.channels=1", "dataset.image_size=28", "dataset.ways=2"]
SMALL = ["trainer=smoke", "test_tasks=4", "validation_tasks=4", "samples=2", "dataset.meta_batch=2", "compile=false"]


def patterns():
    """The regular expression of each key in the table's first column."""
    rows = [row.split(" | ")[0] for row in TABLE.splitlines() if row.startswith("| `")]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row)]
    found = {name: re.escape(name) for name in names}
    for place, pattern in PLACES.items():
        found = {name: words.replace(place, pattern) for name, words in found.items()}
    scores = [words for name, words in found.items() if name.startswith("test/") and name != "test/tasks"]
    for name, raw in (("<score>_raw", ""), ("<score>_ci95", "(_raw)?")):
        found[name] = found[name].replace("<score>", f"({'|'.join(scores)}){raw}")
    return found


@pytest.fixture
def written(trained, own_images):
    """Every key that the runs have written, with the names of those that did."""
    keys = {}
    for name, overrides in RUNS.items():
        data = [*IMAGES, f"dataset.root={own_images}"] if name == "keys_images" else []
        run = trained(name, *SMALL, *overrides, *data)
        for key in json.loads((run / "metrics.json").read_text()):
            keys.setdefault(key, []).append(name)
    return keys


def test_every_key_is_in_the_table_and_every_pattern_of_it_in_a_run(written):
    known = patterns()
    assert len(known) > 40
    assert [key for key in written if not any(re.fullmatch(words, key) for words in known.values())] == []
    unseen = {name for name, words in known.items() if not any(re.fullmatch(words, key) for key in written)}
    assert unseen == ELSEWHERE
    assert set(written["test/linearized/regret"]) == {"keys_sinusoid"}
    assert "keys_images" in written["test/linearized/ece"]
