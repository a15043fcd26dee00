"""Flower's ServerApp."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration describes."""
    from lit_fedbabu.server.federate import serve  # imports PyTorch and Lightning, which takes seconds

    serve(grid, dict(context.run_config))
