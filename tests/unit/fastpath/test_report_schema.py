"""docs/compare.schema.json describes what is written, each key of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from fastpath.report import jsonfile
from fastpath.report.model import Report, VariantFacts

from . import report_sample as sample
from .test_report_handoffs import report as with_handoffs
from .test_report_show import few_rounds

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs/compare.schema.json").read_text()
)


def with_variants():
    return Report(
        setting=sample.SETTING,
        paths={name: sample.path(name, 1.0) for name in ("tsi@base", "tsi@new")},
        variants=(
            VariantFacts(name="base", spec="", guest_kernel="6.1", sockets="module"),
            VariantFacts(name="new", spec="poll-us=0"),
            VariantFacts(name="bad", spec="kernel=x", failure="it died"),
        ),
    )


@pytest.mark.parametrize(
    "own",
    [sample.report(), few_rounds(), with_handoffs("tsi", "tsi+unix"), with_variants()],
    ids=["paths", "few rounds", "hand-offs", "variants"],
)
def test_what_is_written_fits_the_schema(own, tmp_path):
    file = tmp_path / "report.json"
    jsonfile.write(own, file)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(file.read_text()))


def test_the_schema_is_of_the_version_that_is_written():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["version"]["const"] == jsonfile.VERSION


def test_a_key_that_the_schema_does_not_know_does_not_fit():
    loaded = jsonfile.to_dict(sample.report())
    for where in (loaded, loaded["setting"], loaded["paths"]["tsi"]):
        where["other"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(dumped(loaded)))
        del where["other"]


def dumped(loaded):
    return json.dumps(loaded)


def test_a_path_without_latency_fits(tmp_path):
    path = sample.path("tsi", 1.0)
    rounds = tuple(
        dataclasses.replace(each, times_ns={}, values={"up": 1.0})
        for each in path.rounds
    )
    own = Report(
        setting=sample.SETTING, paths={"tsi": dataclasses.replace(path, rounds=rounds)}
    )
    loaded = json.loads(dumped(jsonfile.to_dict(own)))
    jsonschema.Draft202012Validator(SCHEMA).validate(loaded)
    assert "connect_us" not in loaded["paths"]["tsi"]
    assert loaded["paths"]["tsi"]["figures"] == {"up": {"median": 1.0, "unit": "MB/s"}}
