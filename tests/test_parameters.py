"""A notebook's parameters: read from its own cell, and wrong values stopped before anything runs."""

from pathlib import Path

import nbformat
import pytest

from pruninglab.errors import ConfigError
from pruninglab.sweep import Parameter, declared, grid, name_of, parameters, read_grid, source_hash
from pruninglab.typed import choices

CELL = """\
data_name: str = "digits"  # data set
model_name: str = "lenet5"  # model
method: str = "random"  # one of random, global magnitude or gradual
density: float = 0.1  # share of the weights that is left
rate: float = 0.5  # between 0 and 0.9; above = too much
dense_epochs: int = 10  # epochs before
seed: int = 0  # of everything
limit: int | None = None  # steps, if any
quick: bool = True  # or not
layers: list[str] = ["a"]  # names
shares: dict = {"a": 1}  # by layer
plain = 3
"""


@pytest.fixture
def known(notebook):
    return declared(nbformat.read(notebook(CELL), 4))


def test_the_cell_is_read_with_types_defaults_and_help(known):
    assert known["density"].kinds == ("float",)
    assert known["density"].default == 0.1
    assert known["limit"].kinds == ("int", "None")
    assert known["layers"].kinds == ("list",)
    assert known["plain"].kinds == ("int",)
    assert known["rate"].help == "between 0 and 0.9; above = too much"  # an = is no trouble


def test_text_as_on_the_command_line(known):
    given = {"density": "0.1,0.05", "seed": "0:3", "method": "random, gradual"} | {
        "quick": "true,False",
        "limit": "none,5",
    }
    cells = grid(known, given)
    assert len(cells) == 2 * 3 * 2 * 2 * 2
    assert cells[0] == {"density": 0.1, "seed": 0, "method": "random", "quick": True, "limit": None}
    assert cells[-1] == {"density": 0.05, "seed": 2, "method": "gradual", "quick": False, "limit": 5}
    assert [c["seed"] for c in grid(known, {"seed": "6:0:-3"})] == [6, 3]
    assert [c["layers"] for c in grid(known, {"layers": "['a','b'],['c']"})] == [["a", "b"], ["c"]]


def test_values_from_python(known):
    cells = grid(known, {"seed": range(2), "density": [1, 0.5], "shares": {"b": 2}, "plain": 4})
    assert [c["density"] for c in cells] == [1.0, 0.5, 1.0, 0.5]
    assert isinstance(cells[0]["density"], float)
    assert cells[0]["shares"] == {"b": 2}
    assert grid(known, {}) == [{}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"densty": "0.1"}, r"no parameter 'densty'; did you mean 'density'"),
        ({"density": "much"}, r"density=much cannot be read as float"),
        ({"density": ["0.1"]}, r"density='0.1' is wrong; the notebook expects float"),
        ({"density": "0"}, r"density=0.0 is impossible; expected a number above 0 and at most 1"),
        ({"density": [float("nan")]}, r"density=nan is wrong"),
        ({"rate": "0.95"}, r"rate=0.95 is impossible; expected a number from 0 to 0.9"),
        ({"method": "gradul"}, r"method='gradul' is impossible; expected one of .* did you mean gradual"),
        ({"seed": "0.5"}, r"seed=0.5 is wrong; the notebook expects int"),
        ({"seed": [True]}, r"seed=True is wrong"),
        ({"seed": [-1]}, r"seed=-1 is impossible"),
        ({"seed": "3:0"}, r"holds no number"),
        ({"seed": "1,1"}, r"seed has a value twice"),
        ({"seed": []}, r"seed has no value"),
        ({"dense_epochs": "-1"}, r"dense_epochs=-1 is impossible"),
        ({"quick": "1"}, r"quick=1 is wrong"),
        ({"data_name": "digitz"}, r"data_name='digitz' is impossible; expected one of digits"),
        ({"model_name": "lenet6"}, r"model_name='lenet6' is impossible"),
        ({"layers": [["a"], "b"]}, r"layers='b' is wrong; the notebook expects list"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(known, given, said):
    with pytest.raises(ConfigError, match=said):
        grid(known, given)


def test_names_that_have_no_list_are_left_to_the_notebook(known):
    cells = grid(known, {"model_name": "torchvision:resnet18", "data_name": "folder:images", "limit": [None]})
    assert cells[0]["model_name"] == "torchvision:resnet18"


def test_a_grid_from_a_file(known, tmp_path: Path):
    (tmp_path / "grid.toml").write_text('density = [0.1, 0.05]\nseed = "0:3"\n')
    (tmp_path / "grid.yaml").write_text('density: [0.1, 0.05]\nseed: "0:3"\n')
    cells = [grid(known, read_grid(tmp_path / f"grid.{kind}")) for kind in ("toml", "yaml")]
    assert cells[0] == cells[1] == grid(known, {"density": "0.1,0.05", "seed": "0:3"})
    (tmp_path / "bad.toml").write_text("density = ")
    (tmp_path / "list.yaml").write_text("- 1")
    for name, said in (("bad.toml", "cannot be read"), ("list.yaml", "holds a list"), ("grid.json", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            read_grid(tmp_path / name)


def test_a_notebook_without_a_parameters_cell():
    with pytest.raises(ConfigError, match="0 cells of the notebook are tagged"):
        declared(nbformat.v4.new_notebook())


def test_a_cells_name_says_its_parameters_and_holds_what_it_depends_on(notebook):
    code = source_hash(nbformat.read(notebook(CELL, "train()"), 4))
    assert code != source_hash(nbformat.read(notebook(CELL, "train(again=True)"), 4))
    assert code != source_hash(nbformat.read(notebook(CELL.replace("0.1", "0.2"), "train()"), 4))
    name = name_of({"density": 0.1, "method": "global magnitude", "layers": ["a/b", "c"]}, code)
    assert name.startswith("density=0.1_method=global-magnitude_layers=a-b,c_")
    assert name_of({"seed": 1}, code) != name_of({"seed": 1}, "other")
    assert name_of({"seed": 1, "density": 0.1}, code)[-8:] == name_of({"density": 0.1, "seed": 1}, code)[-8:]
    assert len(name_of({"layers": ["x" * 300]}, code)) < 140


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "density: [0.1, 0.05"),
        ("b.yaml", "density: [0.1]\n\tseed: 1"),
        ("c.yml", "{a: b: c}"),
        ("d.yaml", "density: !!python/object:os.system {}"),
        ("e.yaml", "? [1, 2]\n: 3"),
        ("f.yaml", "seed: \x00"),
        ("g.yaml", "- 1"),
        ("h.yaml", ""),
        ("i.yaml", "1: [2]"),
        ("j.yaml", "[" * 5000),
        ("k.toml", "density = "),
        ("l.toml", "a = " + "[" * 5000),
        ("m.yaml", "seed: *nowhere"),
    ],
)
def test_a_malformed_grid_is_refused_in_one_line(tmp_path: Path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name} (cannot be read|holds)") as said:
        read_grid(tmp_path / name)
    assert "\n" not in str(said.value)


TYPED = """\
rewind: str = "weights"  # tickets.rewind
optimizer: str = "adam"  # fit.optimizer
batch_size: int = 10  # fit.batch_size
"""


def test_a_parameter_that_names_a_field_takes_its_choices_and_bounds_from_the_type(notebook):
    known = declared(nbformat.read(notebook(TYPED), 4))
    assert known["rewind"].choices == ("weights", "learning_rate")
    assert known["optimizer"].choices == ("adam", "adamw", "sgd")
    assert grid(known, {"optimizer": "sgd,adamw", "batch_size": [1]})
    for given, said in (
        ({"rewind": "weight"}, "one of weights, learning_rate; did you mean weights"),
        ({"optimizer": "adamm"}, "did you mean adam"),
        ({"batch_size": [0]}, "batch_size=0 is impossible; expected a whole number of at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            grid(known, given)


def named_fields() -> list[tuple[str, Parameter]]:
    """Parameters of the project's notebooks whose help names a typed field."""
    notebooks = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
    found = [(path.stem, p) for path in notebooks for p in declared(nbformat.read(path, 4)).values()]
    return [(stem, p) for stem, p in found if parameters._field(p.help) is not None]


def test_what_a_notebook_says_of_a_field_is_what_its_type_says():
    """Readers and `papermill --help-notebook` see the comment alone."""
    known = named_fields()
    assert known
    for stem, parameter in known:
        words = choices(parameters._field(parameter.help))
        assert parameter.choices == words, f"{stem}: {parameter.name}"
        assert all(word in parameter.help for word in words), f"{stem}: {parameter.name} does not list {words}"
        assert parameter.check(parameter.default) == parameter.default
