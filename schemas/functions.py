"""What must be known about PostgreSQL's own functions by name: which give many rows, which gather many, and which are
not functions of the row.

A mapping runs over a staged batch, a chunk, a mirror and the source, on two servers and at different times, and must
give the same row each time. What a name alone cannot decide (an overload, a user's function) `bindings` reads from the
server's own parse.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SETS = _words("""
    generate_series generate_subscripts json_array_elements json_array_elements_text json_each json_each_text
    json_object_keys json_populate_recordset json_to_recordset jsonb_array_elements jsonb_array_elements_text
    jsonb_each jsonb_each_text jsonb_object_keys jsonb_path_query jsonb_path_query_tz jsonb_populate_recordset
    jsonb_to_recordset regexp_matches regexp_split_to_table string_to_table ts_debug ts_parse ts_token_type
    ts_stat unnest xmltable json_table each skeys svals
""")
"""Functions that give any number of rows (hstore's too)."""

AGGREGATES = _words("""
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist
    dense_rank every json_agg json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique
    json_object_agg_unique_strict json_arrayagg json_objectagg jsonb_agg jsonb_agg_strict jsonb_object_agg
    jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict max min mode percent_rank
    percentile_cont percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg sum
    var_pop var_samp variance xmlagg grouping
""")

NOT_OF_THE_ROW = _words("""
    now transaction_timestamp statement_timestamp clock_timestamp timeofday current_date current_time
    current_timestamp localtime localtimestamp
    random random_normal setseed gen_random_uuid uuidv4 uuidv7 uuid_generate_v1 uuid_generate_v1mc
    uuid_generate_v4 gen_random_bytes gen_salt array_sample array_shuffle nextval currval lastval setval
    current_user session_user user current_role current_catalog current_schema current_schemas current_database
    system_user current_setting set_config current_query version getdatabaseencoding getpgusername
    inet_client_addr inet_client_port inet_server_addr inet_server_port row_security_active
    txid_current txid_current_if_assigned txid_current_snapshot txid_status txid_snapshot_xip mxid_age
    query_to_xml cursor_to_xml table_to_xml schema_to_xml database_to_xml lo_get loread lo_import lo_export
    dblink dblink_exec
""")
"""Refused wherever they are called, whatever their arguments. Everything that begins with `pg_` is refused as well."""

STABLE_OF_THE_ROW = _words("""
    array_to_json array_to_string concat concat_ws format quote_literal quote_nullable json_build_array
    json_build_object jsonb_build_array jsonb_build_object row_to_json to_json to_jsonb to_char to_date to_number
    to_timestamp anytextcat textanycat json_populate_record json_populate_recordset json_to_record
    json_to_recordset jsonb_populate_record jsonb_populate_record_valid jsonb_populate_recordset jsonb_to_record
    jsonb_to_recordset json_object_agg jsonb_object_agg json_agg jsonb_agg json_agg_strict jsonb_agg_strict
    json_object_agg_strict jsonb_object_agg_strict json_object_agg_unique jsonb_object_agg_unique
    json_object_agg_unique_strict jsonb_object_agg_unique_strict convert convert_from convert_to length
    enum_first enum_last enum_range money numeric xml xml_is_well_formed xmlagg
    date date_add date_part date_subtract date_trunc extract generate_series make_timestamptz overlaps time
    timestamp timestamptz timetz timezone interval_pl_timestamptz timestamptz_mi_interval timestamptz_pl_interval
    jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query_array_tz jsonb_path_query_first_tz
    jsonb_path_query_tz in_range
""")
"""PostgreSQL calls these stable because they read a setting; our sessions pin it, so they are functions of the row."""

STABLE_COMPARISONS = ("date_", "timestamp_", "timestamptz_")
"""Prefixes of the stable comparisons between times with and without a zone (`date_lt_timestamptz` and its family)."""

CLOCK_WORDS = frozenset({"now", "today", "tomorrow", "yesterday"})
"""Literals that a date or a time reads as the moment of parsing."""

SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})

HASHES = frozenset({"md5", "sha224", "sha256", "sha384", "sha512", "digest", "uuid_generate_v3", "uuid_generate_v5"})
"""Functions that two different arguments are not expected ever to agree in."""


def refused(name: str) -> bool:
    """Whether calling `name` (PostgreSQL's own, unqualified) can never be a function of the row."""
    return name in NOT_OF_THE_ROW or name.startswith("pg_")


def stable_of_the_row(name: str) -> bool:
    """Whether a stable function of PostgreSQL's is a function of the row under the sessions' pins."""
    return name in STABLE_OF_THE_ROW or (name.startswith(STABLE_COMPARISONS) and "timestamp" in name)
