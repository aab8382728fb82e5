"""Serves the page until Ctrl-C: on localhost unless told, and with nothing fetched from or sent to elsewhere."""

import atexit
import os
import socket
import sys
import tempfile
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.interruption import EXIT_CODE
from ..training.sharing import open_accelerator
from .actions import Actions
from .examples import find_examples, open_examples
from .options import AppArguments
from .segmenters import open_segmenters

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.middleware import Middleware

PORTS = range(7860, 7960)
# Some versions of starlette cut "[::1]" at its first colon.
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "[")
LARGEST_FILE = "2gb"


def serve(arguments: AppArguments) -> None:
    """Opens the models and serves the page until KeyboardInterrupt.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: If a model is not a segmenter of images, or there is no example.
        OSError: If the address cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="contextseg-app-") as folder:
        prepare_gradio(Path(folder))
        try:
            from .page import build_page
        except ImportError as error:
            raise ImportError(
                "contextseg-app needs gradio. Install it: pip install 'contextseg[app]'"
            ) from error
        paths = find_examples(arguments.examples, arguments.models[0])
        port = free_port(arguments.host, arguments.port)
        segmenters = open_segmenters(arguments, open_accelerator(arguments.cpu).device)
        examples, failures = open_examples(paths, segmenters[0])
        for failure in failures:
            say(f"not among the examples: {failure}")
        page = build_page(Actions(segmenters, Path(folder)), examples)
        launch(page, arguments.host, port)
        try:
            say(f"http://{address(arguments.host)}:{port} (Ctrl-C ends it)")
            if not is_loopback(arguments.host):
                say("everybody who reaches this machine can use this page.")
            threading.Event().wait()
        finally:
            page.close(verbose=False)
            atexit.register(end_at_once)


def launch(page: "Blocks", host: str, port: int) -> None:
    """Begins to serve the page."""
    from gradio.themes import Default

    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        inline=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_FILE,
        app_kwargs={"middleware": [trusted(host)]},
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def prepare_gradio(folder: Path) -> None:
    """Settings that gradio reads when it is imported: it reports nothing, and keeps uploads in a folder that goes with us."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def free_port(host: str, wanted: int | None) -> int:
    """Returns the wanted port, or the first free one from 7860.

    Raises OSError if there is none, or the host is not an address of this machine.
    """
    for port in PORTS if wanted is None else [wanted]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except (OSError, OverflowError) as error:
                last = error
    where = f"port {wanted}" if wanted is not None else f"any port from {PORTS.start} to {PORTS.stop - 1}"
    raise OSError(
        f"the page cannot be served at {where} of {host} ({last}). Choose another --port or --host."
    )


def trusted(host: str) -> "Middleware":
    """On localhost only its own names are answered, so that no page of elsewhere makes its name lead here (DNS rebinding)."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = [*LOCAL_NAMES, address(host)] if is_loopback(host) else ["*"]
    return Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)


def end_at_once() -> None:
    """Ends the process as it ends, without waiting for a model at work, whose threads would not survive Python's own end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str) -> str:
    """The host as it stands in a URL; one that means every address, as the local one."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def say(text: str) -> None:
    print(f"contextseg-app: {text}", flush=True)
