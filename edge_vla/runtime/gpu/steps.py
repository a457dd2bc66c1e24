"""Whether a pass of few rows is one launch or a chain of them: settled when a policy is loaded, by asking the device.

In one launch all programs wait for each other, so all must be resident, and what a phase wrote must be seen by the
next. Neither can be proved without the device. So the loaded weights run a pass both ways there, recorded as in an
action: the one launch is taken if the device accepts it, no program waits in vain, every repetition has the same bits,
they are the chain's up to rounding, and it is not slower. Programs that wait in vain give up after a second or two: no
device waits for ever. Knows decoders and graphs; knows nothing of files or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import BackendError, DeviceLostError
from edge_vla.runtime.gpu.config import Steps
from edge_vla.runtime.gpu.decoder import KernelDecoder
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.graph import Recorder, Work, recorder
from edge_vla.runtime.gpu.kernels.decode_pass import PassNetwork

ONE_LAUNCH: Final = "one launch"
A_CHAIN: Final = "a chain of kernels"
START: Final = 72  # the first row's position: a tile of cache slots and a part of another
LENGTH: Final = 96  # slots of the cache
REPEATS: Final = 10
CLOSE: Final = 2.0**-3  # of a hidden row's length: both round alike but for the order of sums and fused products
SLOWER: Final = 1.03  # less is noise
# What CUDA answers where programs do not fit on the device together, or can be launched together at no size.
REFUSED: Final = re.compile(r"cooperative launch|not supported", re.IGNORECASE)

Clock = Callable[[Work], float]  # milliseconds


def settle(decoder: KernelDecoder, wanted: Steps, rows: Tensor, cuda: CudaDevice) -> str:
    """How `decoder` takes such a pass from now on, in words. `rows`: some that it may be tried with.

    BackendError for `persistent` where that cannot be; `auto` takes the chain there, and says why.
    """
    if wanted == "chain":
        return A_CHAIN
    try:
        whole = decoder.network()
        if cuda.device.type == "cuda":
            clock = device_ms if wanted == "auto" else None
            for some in (rows, rows[:1]):  # programs wait otherwise with one row, and it is a kernel of its own
                try_on_device(decoder, whole, some, cuda, recorder(cuda.device), clock)
    except DeviceLostError as error:
        raise DeviceLostError(
            f"{error}. If it fails while a policy is loaded, load with --kernel triton/chain"
        ) from error
    except BackendError as why:
        if wanted == "persistent":
            raise BackendError(
                f"a decode step cannot be one launch here: {why}; leave /persistent out of --kernel"
            ) from why
        return f"{A_CHAIN}: {why}"
    decoder.whole = whole
    return ONE_LAUNCH


def try_on_device(
    decoder: KernelDecoder,
    whole: PassNetwork,
    rows: Tensor,
    cuda: CudaDevice,
    record: Recorder,
    clock: Clock | None,
) -> None:
    """BackendError with the reason for which a pass may not be one launch; with a clock, also where that is slower."""
    with cuda.guard("a decode step in one launch"), torch.inference_mode():
        cache, (at_once, chain) = decoder.cache(LENGTH), (torch.empty_like(rows) for _ in range(2))
        generator = torch.Generator(rows.device).manual_seed(0)
        for tensor in (cache.keys, cache.values):
            tensor.normal_(generator=generator)

        def do_at_once() -> None:
            at_once.copy_(decoder.at_once(whole, rows, START, cache))

        def do_chain() -> None:
            chain.copy_(decoder.chain(rows, START, cache, range(rows.shape[0])))

        _first(do_at_once)
        _check_waits(whole)
        replays = record.record(do_at_once), record.record(do_chain)
        _compare(whole, replays, at_once, chain)
        if clock is not None:
            _race(replays, clock)


def _first(work: Work) -> None:
    """Run it, outside of a graph: what the device refuses, it refuses here, and goes on."""
    try:
        work()
    except RuntimeError as error:
        if not REFUSED.search(str(error)):
            raise
        raise BackendError(f"the device does not run its programs together ({error})") from error


def _check_waits(whole: PassNetwork) -> None:
    if whole.gave_up():
        raise BackendError("its programs waited in vain for each other")


def _compare(whole: PassNetwork, replays: tuple[Work, Work], at_once: Tensor, chain: Tensor) -> None:
    replay, replay_chain = replays
    replay_chain()
    replay()
    _check_waits(whole)
    first = at_once.clone()
    distance = (first.float() - chain.float()).norm(dim=-1) / chain.float().norm(dim=-1)
    if not bool((distance <= CLOSE).all()):  # nor where either is not finite
        raise BackendError(f"it computes something else than the chain (by {float(distance.max()):.2g} of a row)")
    for _ in range(REPEATS):
        replay()
        if not torch.equal(at_once, first):
            raise BackendError("its bits change from run to run")


def _race(replays: tuple[Work, Work], clock: Clock) -> None:
    """In turns, so that neither has the cooler device."""
    times = [tuple(map(clock, replays)) for _ in range(REPEATS)]
    at_once, chain = (sorted(one)[len(one) // 2] for one in zip(*times, strict=True))
    if at_once > SLOWER * chain:
        raise BackendError(f"faster on this device, {chain:.2f} ms a pass against {at_once:.2f} in one launch")


def device_ms(replay: Work) -> float:
    """Of the second of two in a row: the device is busy until the host has launched it."""
    event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    began, ended = event(enable_timing=True), event(enable_timing=True)
    replay()
    began.record()
    replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))
