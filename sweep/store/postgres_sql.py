"""The parts of the views that Postgres says in its own way."""

from __future__ import annotations

INFINITY = "'Infinity'::float8"
# Through the index on (trial_id, param_name), a trial at a time: the planner's guesses about a
# table that has just been filled make it join whole pivots trial by trial otherwise.
JOIN_CHOSEN = """\
LEFT JOIN LATERAL (
    SELECT count(*) AS n{columns}
      FROM ({source}) p WHERE p.trial_id = t.trial_id) c ON true"""
CAST = {"integer": "({})::bigint", "real": "({})::float8", "text": "{}"}
SECONDS = "round(extract(epoch FROM t.datetime_complete - t.datetime_start)::numeric, 3)::float8"


def _valid(column: str) -> str:
    # Python writes NaN and Infinity bare, outside strings; NUL is the one character json cannot
    # unescape. Nothing else that json.dumps writes is refused.
    bare = f"""regexp_replace({column}, '"([^"\\\\]|\\\\.)*"', '""', 'g')"""
    return f"({bare} !~ 'NaN|Infinity' AND position('\\u0000' in {column}) = 0)"


def _json(column: str) -> str:
    """`column` as json, NULL where it is none."""
    return f"CASE WHEN {_valid(column)} THEN {column}::json END"


_CATEGORICAL = """distribution_json LIKE '{"name": "CategoricalDistribution"%'"""
_INT = """distribution_json LIKE '{"name": "Int%'"""
_CHOICE = f"""({_json("distribution_json")}) -> 'attributes' -> 'choices' -> param_value::integer"""
_CHOICE_NUMBER = (
    f"CASE WHEN json_typeof({_CHOICE}) = 'number' THEN (({_CHOICE}) #>> '{{}}')::float8 END"
)
CHOSEN = f"""
      SELECT trial_id, param_name AS name,
             CASE WHEN {_CATEGORICAL} THEN {_CHOICE_NUMBER} ELSE param_value END AS number,
             CASE WHEN {_CATEGORICAL} THEN ({_CHOICE}) #>> '{{}}'
                  WHEN {_INT} THEN param_value::bigint::text
                  ELSE param_value::text END AS text
        FROM trial_params"""

_KNOBS = f"({_json('a.value_json')}) -> 'fixed'"
_FIXED_OBJECT = f"CASE WHEN json_typeof({_KNOBS}) = 'object' THEN {_KNOBS} ELSE '{{}}'::json END"
FIXED = f"""
      SELECT a.study_id, k.key AS name,
             CASE WHEN json_typeof(k.value) = 'number' THEN (k.value #>> '{{}}')::float8 END
               AS number,
             k.value #>> '{{}}' AS text
        FROM study_user_attributes a, json_each({_FIXED_OBJECT}) k
       WHERE a.key = 'knobs'"""

_SE = _json("e.value_json")
SCORE_SE = f"CASE WHEN json_typeof({_SE}) = 'number' THEN ({_SE} #>> '{{}}')::float8 END"


def failure_field(name: str) -> str:
    """The field `name` of the attribute `failure` (aliased x) of a failed trial t."""
    return f"CASE WHEN t.state = 'FAIL' THEN ({_json('x.value_json')}) ->> '{name}' END"


def _number(name: str, kind: str) -> str:
    return (
        f"CASE WHEN t.state = 'FAIL' AND json_typeof(({_json('x.value_json')}) -> '{name}') = "
        f"'number' THEN (({_json('x.value_json')}) ->> '{name}')::float8::{kind} END"
    )


_SCORES = _json("a.value_json")
FOLDS = f"""\
SELECT s.study_name AS study,
       t.number AS trial,
       i.position - 1 AS fold,
       CASE WHEN json_typeof(i.score) = 'number' THEN (i.score #>> '{{}}')::float8 END AS score
  FROM trial_user_attributes a
  JOIN trials t ON t.trial_id = a.trial_id
  JOIN studies s ON s.study_id = t.study_id
  CROSS JOIN LATERAL json_array_elements(
       CASE WHEN json_typeof({_SCORES}) = 'array' THEN {_SCORES} ELSE '[]'::json END)
       WITH ORDINALITY AS i(score, position)
 WHERE a.key = 'fold_scores'"""

FAILURES = f"""\
SELECT s.study_name AS study,
       t.number AS trial,
       {failure_field("kind")} AS kind,
       {failure_field("reason")} AS reason,
       {_number("fold", "bigint")} AS fold,
       {_number("epoch", "bigint")} AS epoch,
       {_number("step", "bigint")} AS step,
       {failure_field("layer")} AS layer,
       {_number("loss", "float8")} AS loss,
       {_number("grad_norm", "float8")} AS grad_norm,
       {failure_field("message")} AS message,
       {failure_field("advice")} AS advice,
       (SELECT coalesce(json_object_agg(name, value), '{{}}'::json)::text FROM (
          SELECT p.param_name AS name,
                 CASE WHEN {_CATEGORICAL}
                      THEN {_CHOICE}
                      WHEN {_INT} THEN to_json(p.param_value::bigint)
                      ELSE to_json(p.param_value) END AS value
            FROM trial_params p WHERE p.trial_id = t.trial_id
           UNION ALL
          SELECT k.key, k.value
            FROM study_user_attributes a, json_each({_FIXED_OBJECT}) k
           WHERE a.study_id = t.study_id AND a.key = 'knobs'
             AND NOT EXISTS (SELECT 1 FROM trial_params p
                              WHERE p.trial_id = t.trial_id AND p.param_name = k.key)) knobs)
         AS parameters
  FROM trials t
  JOIN studies s ON s.study_id = t.study_id
  LEFT JOIN trial_user_attributes x ON x.trial_id = t.trial_id AND x.key = 'failure'
 WHERE t.state = 'FAIL'"""
