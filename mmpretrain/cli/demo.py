"""``mmpretrain demo``: a page in the browser that shows what a checkpoint does, by gradio, on this machine alone."""

from __future__ import annotations

import argparse
import html
import os
import socket
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from mmpretrain.cli.commands import OneLine, guarded
from mmpretrain.cli.errors import UserError, one_line

if TYPE_CHECKING:
    from mmpretrain.cli.demo_tabs import Demo

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
_EXAMPLE = "a red circle left of a blue square"


def run(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain demo", description="A page in the browser that shows what a checkpoint does.")
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run (its best checkpoint, else its last)")
    parser.add_argument("--dvae", metavar="RUN", help="of dalle.yaml: the discrete autoencoder whose codes it was trained on")
    parser.add_argument("--rerank", metavar="RUN", help="of dalle.yaml: a CLIP that orders the pictures")
    parser.add_argument("--host", default="127.0.0.1", help="who can see the page; default 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
    return guarded(_demo, parser.parse_args(argv[1:]))


def _demo(options: argparse.Namespace) -> int:
    _check(options.host, options.port)
    _gradio()
    from mmpretrain.cli.demo_tabs import open_demo
    from mmpretrain.cli.generate import place_of
    from mmpretrain.data_tools.common import device_of

    device = device_of(options.device, "--device")
    dvae, rerank = (None if text is None else place_of(text) for text in (options.dvae, options.rerank))
    shown = page(open_demo(place_of(options.checkpoint), dvae, rerank, device))
    serve(shown, options.host, options.port)
    shown.block_thread()
    return 0


def _check(host: str, port: int) -> None:
    """Before anything is loaded.

    Raises:
        UserError: the page cannot be served at this address.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} must be from 1 to 65535")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a page that was just closed is no obstacle
            trial.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port} cannot be used: {error.strerror}; choose another") from None


def serve(shown: Any, host: str, port: int) -> None:
    """Start the server of a page, print its address and return; it is not shared beyond ``host``.

    Raises:
        OSError: the address cannot be used.
    """
    shown.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        max_file_size="64mb",
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"the page is at {shown.local_url} (Ctrl-C stops it)", flush=True)


def page(demo: Demo) -> Any:
    """The ``gradio.Blocks`` of a demo.

    Raises:
        UserError: gradio is not installed.
    """
    gr = _gradio()
    makers: dict[str, Callable[[Any, Demo, Callable[..., Any]], None]] = {
        "Match": _match,
        "Masked words": _masked_words,
        "Generate": _generate,
        "Reconstruct": _reconstruct,
    }
    with gr.Blocks(title=f"mmpretrain: {demo.source}", analytics_enabled=False) as shown:
        gr.HTML(f"<h2>{html.escape(demo.source)}</h2>")
        for name, function in demo.tabs.items():
            with gr.Tab(name):
                makers[name](gr, demo, function)
    return shown


def _gradio() -> Any:
    """The module, told to stay off the network.

    Raises:
        UserError: it is not installed.
    """
    os.environ.update(QUIET)
    try:
        import gradio
    except ImportError:
        raise UserError("demo: the page is made by gradio; pip install 'mmpretrain-vl[demo]'") from None
    return gradio


def _told(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a tab whose refusals are shown in the page as one line, which is no markup."""

    @wraps(function)
    def run(*given: Any) -> Any:
        try:
            return function(*given)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(one_line(error), quote=False), print_exception=False) from None

    return run


def _button(gr: Any, text: str, function: Callable[..., Any], given: list[Any], shown: list[Any]) -> None:
    """A button that runs a function; one at a time in the whole page, since all use one model."""
    button = gr.Button(text, variant="primary")
    button.click(_told(gr, function), given, shown, api_name=text.lower(), concurrency_limit=1, concurrency_id="model")


def _picture(gr: Any) -> Any:
    """As the file has it: transparency and palettes are treated as in training."""
    return gr.Image(type="pil", image_mode=None, sources=["upload", "clipboard"], label="Picture", height=320)


def _match(gr: Any, demo: Demo, function: Callable[..., Any]) -> None:
    def run(image: Any, captions: str) -> list[list[Any]]:
        return [[caption, round(score, 4)] for caption, score in function(image, captions)]

    with gr.Row():
        with gr.Column():
            image, captions = _picture(gr), gr.Textbox(label="Captions, one a line", lines=4, placeholder=_EXAMPLE)
            place = gr.Column()
        table = gr.Dataframe(headers=["caption", demo.unit], datatype=["str", "number"], interactive=False, wrap=True, label="Best first")
    with place:
        _button(gr, "Score", run, [image, captions], [table])


def _masked_words(gr: Any, demo: Demo, function: Callable[..., Any]) -> None:
    def run(image: Any, text: str) -> list[list[str]]:
        return [[token, ", ".join(f"{guess} {chance:.1%}" for guess, chance in guesses)] for token, guesses in function(image, text)]

    with gr.Row():
        with gr.Column():
            image, text = _picture(gr), gr.Textbox(label="Text", placeholder=_EXAMPLE)
            place = gr.Column()
        table = gr.Dataframe(headers=["hidden", "guesses"], datatype="str", interactive=False, wrap=True, label="Each word hidden in turn")
    with place:
        _button(gr, "Guess", run, [image, text], [table])


def _generate(gr: Any, demo: Demo, function: Callable[..., Any]) -> None:
    from mmpretrain.cli.demo_tabs import PICTURES

    def run(prompt: str, n: int, guidance: float, seed: int) -> list[tuple[Any, str | None]]:
        found = function(prompt, n, guidance, seed)
        return [(image, None if score is None else f"{demo.unit} {score:.3f}") for image, score in found]

    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt", placeholder=_EXAMPLE)
            n = gr.Slider(1, PICTURES, value=8, step=1, label="Pictures")
            guidance = gr.Slider(0, 10, value=1, step=0.1, label="Guidance (1: none)")
            seed = gr.Number(value=0, precision=0, label="Seed")
            place = gr.Column()
        gallery = gr.Gallery(label="Best first" if demo.unit else "As they were drawn", format="png", columns=4, object_fit="contain")
    with place:
        _button(gr, "Draw", run, [prompt, n, guidance, seed], [gallery])


def _reconstruct(gr: Any, demo: Demo, function: Callable[..., Any]) -> None:
    def run(image: Any) -> tuple[Any, Any, str]:
        before, after, decibels = function(image)
        return before, after, f"{decibels:.2f} dB"

    with gr.Row():
        image = _picture(gr)
        before = gr.Image(format="png", interactive=False, label="As it is read", height=320)
        after = gr.Image(format="png", interactive=False, label="From its codes", height=320)
    psnr = gr.Textbox(label="PSNR", interactive=False)
    _button(gr, "Reconstruct", run, [image], [before, after, psnr])
