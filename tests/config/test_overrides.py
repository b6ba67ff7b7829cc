"""A slip in a command's words is told by the word, with what to do."""

from pathlib import Path

import pytest

from meta_exp.config.overrides import check_words, parse

CONF = Path(__file__).parents[2] / "conf"
SLIPS = {
    "name=a=b": r"""name=a=b: expected key=value in Hydra's grammar, got mismatched input '='.*quotes.*'name="a=b"'$""",
    "name='a b": r"""name='a b: expected key=value in Hydra's grammar, got .*'name="a b"'$""",
    'name=a"b': r"""name=a"b: expected key=value in Hydra's grammar, got .*'name="a\\"b"'$""",
    "seed = 5": r"seed = 5: expected key=value in Hydra's grammar, got .*; leave out the blanks: seed=5$",
    "model.widths=[4": r"model.widths=\[4: expected key=value in Hydra's grammar, .* a list is model.widths=\[a,b\]",
    "name=größe": "name=größe: expected key=value",
    "seed": "'seed': expected key=value, got no key or no value",
    "=5": "'=5': expected key=value, got no key or no value",
    "curvature=[1,2]": r"curvature: expected the name of an option \(diagonal, .*\), got \[1, 2\]",
    "logger=null": r"logger: expected the name of an option \(csv, none, .*\), got None",
    "model=": "model: expected the name of an option",
    "hydra/launcher=5": "hydra/launcher: expected the name of an option",
}


@pytest.mark.parametrize("word", SLIPS)
def test_slips(word):
    with pytest.raises(ValueError, match=SLIPS[word]):
        check_words(["seed=0", word], CONF)


def test_what_is_meant_passes():
    words = ["seed=0,1", "logger=[csv,tensorboard]", "curvature=glob(*)", "~logger", "+a.b=1", "experiment=sinusoid"]
    check_words([*words, "algorithm=maml,llama", 'name="a=b"', "model.widths=[4,5]", "hydra/launcher=joblib"], CONF)
    assert [override.key_or_group for override in parse(["a=1", "~b"])] == ["a", "b"]
