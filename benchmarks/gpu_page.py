"""The page of `gpu_check.py`, from its results."""

from typing import Any

PAGE = """# GPU check

`make gpu-check` (`python -m contextseg.benchmarks.gpu_check`)

{machine}

All parts run in one process within {minutes:g} minutes, without network, except for the tests, which have a process of their own. The **share** is that of the rate
of a product of two bf16 matrices on the same GPU: operations of a training step (three times those of the forward pass, two for each multiply-add)
over its time. Tokens are positions of the first stage. Memory is the peak of all tensors beyond the weights and the state of the optimizer.

- Tests marked `gpu`: {tests}
- Product of two bf16 matrices: {matrix}
- GLAM-Swin compiled: {compiled}
- CamVid, from random weights: {camvid}

## Training steps in bf16

Forward under autocast, loss, backward and AdamW; not compiled, except for the last row.

| model | size | batch | step | samples/s | tokens/s | share | memory | attention all fused | operators of attention |
|---|---|---|---|---|---|---|---|---|---|
{lines}
"""
NOT_RUN = "not run"


def gpu_page(results: dict[str, Any]) -> str:
    """The Markdown page of the results in benchmarks/gpu.json."""
    hardware, versions = results["hardware"], results["versions"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    steps = {**results.get("families", {}), "compiled": results.get("compiled", {"not run": ""})}
    return PAGE.format(
        machine=f"{gpus}, {hardware['processor']}, PyTorch {versions['torch']}, transformers {versions['transformers']}.",
        minutes=results["minutes"],
        tests=told(results.get("tests"), lambda found: found["passed"]),
        matrix=told(
            results.get("matrix"),
            lambda found: f"{found['rate'] / 1e12:.3g} T operations/s, side {found['side']}",
        ),
        compiled=told(results.get("compiled"), goal),
        camvid=told(results.get("camvid"), camvid),
        lines="\n".join(line(name, numbers) for name, numbers in steps.items() if isinstance(numbers, dict)),
    )


def told(result: dict[str, Any] | None, tell: Any) -> str:
    """What a part found, or why there is nothing to tell."""
    if not result:
        return NOT_RUN
    for reason in ("failed", "not run", "skipped"):
        if reason in result:
            return f"{reason}: {result[reason]}"
    return tell(result)


def goal(found: dict[str, Any]) -> str:
    reached = "reached" if found["reached"] else "not reached"
    return (
        f"{found['share']:.1%} of the matrix rate, goal {found['goal']:.0%}, {reached}; the first step took "
        f"{found['first_seconds']:.0f} s"
    )


def camvid(found: dict[str, Any]) -> str:
    scores = found["scores"]
    scored = f"mIoU {scores['mean_iou']:.3f} after {scores['step']} steps" if scores else "no score"
    return f"{found['status']}, {found['steps_done']} steps in {found['seconds']:.0f} s, {scored}"


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    if "share" not in found:
        return f"| {name} | {told(found, str)} | | | | | | | | |"
    attention = found.get("attention")
    operators = attention["operators"] if attention else {}
    cells = [
        *(name, found["size"], str(found["batch"]), f"{1000 * found['seconds']:.1f} ms"),
        *(
            f"{found['samples_per_second']:,.1f}",
            f"{found['tokens_per_second']:,.0f}",
            f"{found['share']:.1%}",
        ),
        f"{found['memory'] / 2**20:,.0f} MiB",
        ("yes" if attention["all_fused"] else "**no**") if attention else "",
        ", ".join(f"{operator} {calls}x" for operator, calls in operators.items()),
    ]
    return f"| {' | '.join(cells)} |"


__all__ = ["gpu_page"]
