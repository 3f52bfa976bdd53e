"""What others are told of what livepatch does to processes: an audit record, metrics, traces, a page.

`events` is how a transaction tells of itself; `trail` writes it into the audit record, whose file `audit` keeps;
`metrics` asks processes and writes Prometheus text, `spans` sends OpenTelemetry, `report` makes an HTML page. None of
them has a say: only a record that cannot be written may stop a change, before it has begun, if strict mode wants that.
"""
