"""The parts of the views that SQLite says in its own way (3.38 or newer)."""

from __future__ import annotations

INFINITY = "9e999"
JOIN_CHOSEN = """\
LEFT JOIN (
    SELECT trial_id{columns}
      FROM ({source}) p GROUP BY trial_id) c ON c.trial_id = t.trial_id"""
CAST = {"integer": "CAST({} AS INTEGER)", "real": "CAST({} AS REAL)", "text": "{}"}
SECONDS = "round((julianday(t.datetime_complete) - julianday(t.datetime_start)) * 86400.0, 3)"

_CATEGORICAL = """distribution_json LIKE '{"name": "CategoricalDistribution"%'"""
_INT = """distribution_json LIKE '{"name": "Int%'"""
_PATH = "'$.attributes.choices[' || CAST(param_value AS INTEGER) || ']'"
_CHOICE_TYPE = (
    f"CASE WHEN json_valid(distribution_json) THEN json_type(distribution_json, {_PATH}) END"
)
_CHOICE = f"json_extract(distribution_json, {_PATH})"

# A choice that holds NaN makes the list no JSON: shown as NULL.
CHOSEN = f"""
      SELECT trial_id, param_name AS name,
             CASE WHEN {_CATEGORICAL}
                  THEN CASE WHEN {_CHOICE_TYPE} IN ('integer', 'real') THEN {_CHOICE} END
                  ELSE param_value END AS number,
             CASE WHEN {_CATEGORICAL}
                  THEN CASE {_CHOICE_TYPE} WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'
                       WHEN 'text' THEN {_CHOICE}
                       WHEN 'integer' THEN CAST({_CHOICE} AS TEXT)
                       WHEN 'real' THEN CAST({_CHOICE} AS TEXT) END
                  WHEN {_INT} THEN CAST(CAST(param_value AS INTEGER) AS TEXT)
                  ELSE CAST(param_value AS TEXT) END AS text
        FROM trial_params"""

_KNOBS = "CASE WHEN json_valid(a.value_json) THEN a.value_json ELSE '{}' END"
# Lists with a space after the comma, as json.dumps writes the lists among the choices.
_LIST = """'[' || coalesce((SELECT group_concat(
                    CASE i.type WHEN 'text' THEN json_quote(i.value) WHEN 'null' THEN 'null'
                    WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE i.value END, ', ')
                    FROM json_each(e.value) i), '') || ']'"""
FIXED = f"""
      SELECT a.study_id, e.key AS name,
             CASE WHEN e.type IN ('integer', 'real') THEN e.value END AS number,
             CASE e.type WHEN 'null' THEN NULL WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'
                  WHEN 'array' THEN {_LIST} ELSE CAST(e.value AS TEXT) END AS text
        FROM study_user_attributes a, json_each({_KNOBS}, '$.fixed') e
       WHERE a.key = 'knobs'"""

SCORE_SE = (
    "CASE WHEN json_valid(e.value_json) AND json_type(e.value_json) IN ('integer', 'real') "
    "THEN json_extract(e.value_json, '$') END"
)


def failure_field(name: str) -> str:
    """The field `name` of the attribute `failure` (aliased x) of a failed trial t."""
    return (
        "CASE WHEN t.state = 'FAIL' AND json_valid(x.value_json) "
        f"THEN json_extract(x.value_json, '$.{name}') END"
    )


def _number(name: str, kind: str) -> str:
    return (
        "CASE WHEN t.state = 'FAIL' AND json_valid(x.value_json) "
        f"AND json_type(x.value_json, '$.{name}') IN ('integer', 'real') "
        f"THEN CAST(json_extract(x.value_json, '$.{name}') AS {kind}) END"
    )


FOLDS = """\
SELECT s.study_name AS study,
       t.number AS trial,
       e.key AS fold,
       CASE WHEN e.type IN ('integer', 'real') THEN CAST(e.value AS REAL) END AS score
  FROM trial_user_attributes a
  JOIN trials t ON t.trial_id = a.trial_id
  JOIN studies s ON s.study_id = t.study_id
  JOIN json_each(CASE WHEN json_valid(a.value_json) AND json_type(a.value_json) = 'array'
                      THEN a.value_json ELSE '[]' END) e
 WHERE a.key = 'fold_scores'"""

FAILURES = f"""\
SELECT s.study_name AS study,
       t.number AS trial,
       {failure_field("kind")} AS kind,
       {failure_field("reason")} AS reason,
       {_number("fold", "INTEGER")} AS fold,
       {_number("epoch", "INTEGER")} AS epoch,
       {_number("step", "INTEGER")} AS step,
       {failure_field("layer")} AS layer,
       {_number("loss", "REAL")} AS loss,
       {_number("grad_norm", "REAL")} AS grad_norm,
       {failure_field("message")} AS message,
       {failure_field("advice")} AS advice,
       (SELECT json_group_object(name, json(value)) FROM (
          SELECT param_name AS name,
                 CASE WHEN {_CATEGORICAL} AND NOT json_valid(distribution_json) THEN 'null'
                      WHEN {_CATEGORICAL} THEN distribution_json -> ({_PATH})
                      WHEN {_INT} THEN CAST(CAST(param_value AS INTEGER) AS TEXT)
                      ELSE json_quote(param_value) END AS value
            FROM trial_params p WHERE p.trial_id = t.trial_id
           UNION ALL
          SELECT k.key, {_KNOBS} -> k.fullkey
            FROM study_user_attributes a, json_each({_KNOBS}, '$.fixed') k
           WHERE a.study_id = t.study_id AND a.key = 'knobs' AND k.key IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM trial_params p
                              WHERE p.trial_id = t.trial_id AND p.param_name = k.key)))
         AS parameters
  FROM trials t
  JOIN studies s ON s.study_id = t.study_id
  LEFT JOIN trial_user_attributes x ON x.trial_id = t.trial_id AND x.key = 'failure'
 WHERE t.state = 'FAIL'"""
