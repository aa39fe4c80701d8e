"""What a process says over HTTP: metrics for Prometheus, health for an orchestrator, the route for applications.

`server` answers GET alone, on the loopback unless the file says otherwise; `views` is what each path says. `/route` and
`/status.json` keep an answer for a moment, so that no crowd of readers reaches the databases.

Deliberately absent: anything that changes something, row data, and authentication.
"""
