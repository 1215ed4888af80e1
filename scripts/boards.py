#!/usr/bin/env python3
"""Writes the Grafana boards, one for each service, into the chart. A board is a list of rows here;
what Grafana wants around it is the same for all."""

import json
import sys
from pathlib import Path

BOARDS = Path(__file__).resolve().parents[1] / "deploy/helm/postern/files/dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}


def quantiles(metric, by=""):
    group = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        (f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket[$__rate_interval])))", f"{legend}p{int(q * 100)}")
        for q in (0.5, 0.99)
    ]


def process(service):
    """What every process tells about itself."""
    here = f'pomerium_build_info{{service=~"{service}|all"}}'
    return (
        "Process",
        [
            ("CPU", "percentunit", [(f"rate(process_cpu_seconds_total[$__rate_interval]) and on (instance) {here}", "{{instance}}")]),
            ("Memory", "bytes", [(f"process_resident_memory_bytes and on (instance) {here}", "{{instance}}")]),
            ("File descriptors", "percentunit", [(f"process_open_fds / process_max_fds and on (instance) {here}", "{{instance}}")]),
            ("Not ready", "short", [(f"pomerium_health_status == 0 and on (instance) {here}", "{{instance}} {{check}}")]),
            (
                "Configuration",
                "short",
                [
                    (f'pomerium_config_last_reload_success{{service=~"{service}|all"}}', "{{instance}} last change taken over"),
                    (f'count(count_values("checksum", pomerium_config_checksum_decimal{{service=~"{service}|all"}}))', "different configurations"),
                ],
            ),
        ],
    )


def calls(service):
    here = f'pomerium_build_info{{service=~"{service}|all"}}'
    return (
        "Other services",
        [
            (
                "Endpoints",
                "short",
                [
                    (f"postern_rpc_endpoints and on (instance) {here}", "{{instance}} {{service}} known"),
                    (f"postern_rpc_endpoints_ready and on (instance) {here}", "{{instance}} {{service}} ready"),
                ],
            ),
            (
                "Calls asked elsewhere",
                "ops",
                [
                    (f"rate(postern_rpc_calls_moved_total[$__rate_interval]) and on (instance) {here}", "{{instance}} {{service}} moved"),
                    (f"rate(postern_rpc_calls_hedged_total[$__rate_interval]) and on (instance) {here}", "{{instance}} {{service}} hedged"),
                    (f"rate(postern_rpc_calls_without_endpoint_total[$__rate_interval]) and on (instance) {here}", "{{instance}} {{service}} nobody there"),
                ],
            ),
            ("Age of addresses", "s", [(f"postern_rpc_lookup_age_seconds and on (instance) {here}", "{{instance}} {{url}}")]),
        ],
    )


ROWS = {
    "proxy": [
        (
            "Requests",
            [
                ("Requests", "reqps", [("sum by (envoy_response_code_class) (rate(envoy_http_downstream_rq_xx_total[$__rate_interval]))", "{{envoy_response_code_class}}xx")]),
                ("Duration", "ms", quantiles("envoy_http_downstream_rq_time")),
                ("Under way", "short", [("sum by (instance) (envoy_http_downstream_rq_active)", "{{instance}}")]),
            ],
        ),
        (
            "Decisions",
            [
                (
                    "Decisions",
                    "ops",
                    [
                        ("sum(rate(envoy_http_ext_authz_ok_total[$__rate_interval]))", "allowed"),
                        ("sum(rate(envoy_http_ext_authz_denied_total[$__rate_interval]))", "denied"),
                        ("sum(rate(envoy_http_ext_authz_error_total[$__rate_interval]))", "nobody decided"),
                    ],
                ),
                ("Undecided, share", "percentunit", [("postern:undecided:ratio_rate5m", "5 minutes"), ("postern:undecided:ratio_rate1h", "1 hour")]),
            ],
        ),
        (
            "Connections",
            [
                (
                    "Open",
                    "short",
                    [
                        ("sum by (instance) (envoy_http_downstream_cx_active)", "{{instance}}"),
                        ("sum by (instance) (envoy_http_downstream_cx_ssl_active)", "{{instance}} TLS"),
                    ],
                ),
                ("New", "cps", [("sum(rate(envoy_http_downstream_cx_total[$__rate_interval]))", "new")]),
                (
                    "Failed",
                    "cps",
                    [
                        ("sum(rate(envoy_listener_ssl_connection_error_total[$__rate_interval]))", "TLS handshake"),
                        ("sum(rate(envoy_listener_downstream_cx_overflow_total[$__rate_interval]))", "too many"),
                    ],
                ),
                ("Certificates", "s", [("min by (name) (postern_certificate_not_after_timestamp_seconds) - time()", "{{name}} ends in")]),
            ],
        ),
        (
            "Applications",
            [
                ("Requests", "reqps", [("sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_rq_total[$__rate_interval]))", "{{envoy_cluster_name}}")]),
                ("5xx", "reqps", [('sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_rq_xx_total{envoy_response_code_class="5"}[$__rate_interval]))', "{{envoy_cluster_name}}")]),
                ("Duration", "ms", quantiles("envoy_cluster_upstream_rq_time", "envoy_cluster_name")),
                (
                    "Trouble",
                    "ops",
                    [
                        ("sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_cx_connect_fail_total[$__rate_interval]))", "{{envoy_cluster_name}} no connection"),
                        ("sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_rq_timeout_total[$__rate_interval]))", "{{envoy_cluster_name}} too slow"),
                        ("sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_rq_retry_total[$__rate_interval]))", "{{envoy_cluster_name}} sent again"),
                        ("sum by (envoy_cluster_name) (rate(envoy_cluster_upstream_rq_pending_overflow_total[$__rate_interval]))", "{{envoy_cluster_name}} too many"),
                    ],
                ),
            ],
        ),
        calls("proxy"),
        process("proxy"),
    ],
    "authorize": [
        (
            "Decisions",
            [
                (
                    "Decisions",
                    "ops",
                    [
                        ("sum(rate(pomerium_authorize_evaluator_allowals_total[$__rate_interval]))", "allowed"),
                        ("sum(rate(pomerium_authorize_evaluator_denials_total[$__rate_interval]))", "denied"),
                        ("sum(rate(postern_authorize_undecided_total[$__rate_interval]))", "undecided"),
                    ],
                ),
                ("By instance", "ops", [("sum by (instance) (rate(pomerium_authorize_evaluator_evaluations_total[$__rate_interval]))", "{{instance}}")]),
                ("Time to decide", "ms", quantiles("pomerium_authorize_evaluator_evaluation_duration")),
                ("Time for headers", "ms", quantiles("pomerium_authorize_header_evaluator_evaluation_duration")),
            ],
        ),
        (
            "Copy of the records",
            [
                ("Age", "s", [("postern_authorize_data_age_seconds", "{{instance}}")]),
                ("Version", "short", [("pomerium_databroker_syncer_latest_record_version", "{{instance}}")]),
                ("Asked one by one", "ops", [("rate(postern_authorize_record_lookups_total[$__rate_interval])", "{{instance}}")]),
                (
                    "Streams",
                    "ops",
                    [
                        ("rate(pomerium_databroker_syncer_sync_total[$__rate_interval])", "{{instance}} begun"),
                        ("rate(pomerium_databroker_syncer_sync_failures_total[$__rate_interval])", "{{instance}} broken"),
                        ("rate(pomerium_databroker_syncer_sync_latest_total[$__rate_interval])", "{{instance}} copied anew"),
                        ("rate(pomerium_databroker_syncer_sync_latest_failures_total[$__rate_interval])", "{{instance}} copy failed"),
                    ],
                ),
            ],
        ),
        (
            "Proxies and programs",
            [
                ("Different configurations of proxies", "short", [("postern_authorize_configurations", "{{instance}}")]),
                (
                    "Sessions from tokens",
                    "ops",
                    [
                        ("sum(rate(pomerium_config_idp_token_session_creator_sessions_created_total[$__rate_interval]))", "made"),
                        ("sum(rate(pomerium_config_idp_token_session_creator_sessions_cached_total[$__rate_interval]))", "known"),
                    ],
                ),
            ],
        ),
        calls("authorize"),
        process("authorize"),
    ],
    "authenticate": [calls("authenticate"), process("authenticate")],
    "databroker": [
        ("Storage", [("Answers", "short", [("postern_databroker_storage_up", "{{instance}}")])]),
        (
            "Sessions",
            [
                ("Looked after", "short", [("sum(postern_identity_manager_sessions)", "sessions")]),
                ("Who does it", "short", [("postern_identity_manager_active", "{{instance}}")]),
                (
                    "Refreshes in 15 minutes",
                    "short",
                    [
                        ("sum(delta(pomerium_identity_manager_last_session_refresh_success[15m]))", "session, done"),
                        ("sum(delta(pomerium_identity_manager_last_session_refresh_errors[15m]))", "session, failed"),
                        ("sum(delta(pomerium_identity_manager_last_user_refresh_success[15m]))", "user, done"),
                        ("sum(delta(pomerium_identity_manager_last_user_refresh_errors[15m]))", "user, failed"),
                    ],
                ),
            ],
        ),
        process("databroker"),
    ],
}


def board(service):
    panels, line = [], 0
    for title, row in ROWS[service]:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": line, "w": 24, "h": 1}})
        line += 1
        width = 24 // min(len(row), 3)
        for number, (name, unit, queries) in enumerate(row):
            place = {"x": number % 3 * width, "y": line + number // 3 * 8, "w": width, "h": 8}
            panels.append(
                {
                    "id": len(panels) + 1,
                    "type": "timeseries",
                    "title": name,
                    "datasource": PROMETHEUS,
                    "gridPos": place,
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                    "targets": [
                        {"refId": chr(65 + index), "datasource": PROMETHEUS, "expr": expression, "legendFormat": legend}
                        for index, (expression, legend) in enumerate(queries)
                    ],
                }
            )
        line += (len(row) + 2) // 3 * 8
    return {
        "uid": f"postern-{service}",
        "title": f"Postern / {service}",
        "tags": ["postern"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def files():
    return {BOARDS / f"{service}.json": json.dumps(board(service), indent=1) + "\n" for service in ROWS}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.name, file=sys.stderr)
