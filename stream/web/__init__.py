"""What a process says over HTTP: metrics for Prometheus, health for an orchestrator, the route for applications."""
