"""No study file, however mangled, gets a traceback: it is read, or refused in a sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.errors import SpecError
from sweep.search.space import distributions
from sweep.spec import StudySpec, load_spec
from sweep.spec.load import parse_yaml

STUDIES = sorted((Path(__file__).resolve().parents[1] / "studies").glob("*.yaml"))
TEXTS = [path.read_text("utf-8") for path in STUDIES]
RAWS = [parse_yaml(text, "study") for text in TEXTS]

# Values that look like something: keys, kinds, distributions, and the edges of numbers.
WORDS = sorted({word for text in TEXTS for word in text.replace(":", " ").split()})
numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([10**400, -(2**63), 2**64, 2**32]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(WORDS), st.text(max_size=8))
ranges = st.fixed_dictionaries(
    {"low": scalars, "high": scalars},
    optional={"log": scalars, "step": scalars, "choices": scalars},
)
values = st.recursive(
    scalars | ranges | st.fixed_dictionaries({"choices": st.lists(scalars, max_size=3)}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
quick = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], database=None)


def check(source: Any, overrides: list[str]) -> None:
    """What is accepted can be used; what is refused gets one readable line."""
    try:
        spec = load_spec(source, overrides).spec
    except SpecError as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        assert len(sentence) < 1200, sentence
        assert "pydantic" not in sentence and "Traceback" not in sentence, sentence
        return
    use(spec)


def use(spec: StudySpec) -> None:
    assert set(distributions(spec)) == set(spec.space())
    json.dumps(spec.substance(), allow_nan=False)
    json.dumps(spec.fixed(), allow_nan=False)
    varied = distributions(spec)
    params = {
        name: knob.choices[0] if hasattr(knob, "choices") else knob.low
        for name, knob in varied.items()
    }
    spec.setting(params)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a study, the study itself not included."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from places(value, (*path, i))


@quick
@given(data=st.data())
def test_a_study_with_any_values_replaced(data: st.DataObject) -> None:
    raw = copy.deepcopy(data.draw(st.sampled_from(RAWS)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(raw))))
        node = raw
        for key in path[:-1]:
            node = node[key]
        what = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            node[path[-1]] = data.draw(values)
        elif what == "remove":
            del node[path[-1]]
        elif isinstance(node, dict):
            node[data.draw(st.sampled_from(WORDS))] = data.draw(values)
        if not raw:
            break
    check(raw, [])


@quick
@given(data=st.data())
def test_a_file_with_any_bytes_replaced(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("mangled") / "study.yaml"
    text = bytearray(data.draw(st.sampled_from(TEXTS)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = min(len(text), begin + data.draw(st.integers(0, 6)))
        text[begin:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b": ", b"\n  - ", b"{", b"}", b"&a ", b"!!"])
        )
    path.write_bytes(bytes(text))
    check(path, [])


@quick
@given(
    raw=st.sampled_from(RAWS),
    overrides=st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS) | st.text(max_size=3), min_size=1, max_size=3),
            st.sampled_from(["=", "==", "", "= "]),
            st.sampled_from(WORDS) | st.text(max_size=6) | scalars.map(repr),
        ).map(lambda parts: ".".join(parts[0]) + parts[1] + parts[2]),
        max_size=2,
    ),
)
def test_a_study_with_any_override(raw: Any, overrides: list[str]) -> None:
    check(copy.deepcopy(raw), overrides)


@pytest.mark.parametrize("raw", RAWS, ids=[path.stem for path in STUDIES])
def test_every_value_of_a_study_replaced_by_each_kind_of_value(raw: Any) -> None:
    for path in places(raw):
        for value in (None, True, -1, 0.5, "x", [], [1, "a"], {}, {"low": 1, "high": 2}):
            mangled = copy.deepcopy(raw)
            node = mangled
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            check(mangled, [])
