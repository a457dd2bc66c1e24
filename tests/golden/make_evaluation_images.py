"""Images as published evaluation scripts hand them to OpenVLA's processor, by those scripts' own functions.

Ran with Python 3.11, tensorflow-cpu 2.15.1, opencv-python-headless 4.9.0.80, Pillow 13.0.0, numpy 1.26.4, in an
environment of its own, on checkouts of openvla/openvla (c8f03f4), moojink/openvla-oft (213c5ff) and
DelinQu/SimplerEnv-OpenVLA (ccfe380):

    python -m tests.golden.make_evaluation_images OPENVLA OFT SIMPLER

The functions are cut out of their files and run as they stand; the files import simulators and models. OpenVLA's crop
is inside `get_vla_action`, so that runs whole, with a processor that keeps the image it is given. The simulator's image
is `seeded_picture(NAME, *SHAPES[NAME])`, which the tests make again.

`NAME/input` is the sha256 of a picture's bytes, `NAME/libero` and `NAME/simpler` those of the results (224, 224, 3)
uint8, `NAME/SCRIPT/sample` a result [::16, ::16], to show where a mismatch lies. `NAME/jpeg`, `NAME/lanczos3` and
`NAME/crop` are single steps on the picture: sha256 of `encode_jpeg` and `decode_image`, of `resize`, of the crop.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from .seeded import seeded_picture
from .storage import write_npz

Levels = npt.NDArray[np.uint8]

FOLDER: Final = Path(__file__).parent
SIZE: Final = 224
SHAPES: Final = {
    "libero": (256, 256),
    "widowx": (480, 640),
    "google robot": (512, 640),
    "policy's size": (224, 224),
    "twice": (448, 448),
    "twice and thrice": (448, 672),
    "one side larger": (97, 301),
    "small": (61, 97),
    "sliver": (3, 250),
}


class GivenError(Exception):
    """Stops a script where its processor got the image."""


def functions(path: Path, names: Mapping[str, Any], *wanted: str) -> dict[str, Any]:
    """Functions and methods of a file by name, run with `names` as their globals."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    assert [node.name for node in found] == list(wanted), path
    space = dict(names)
    exec(compile(ast.Module(list[ast.stmt](found), []), str(path), "exec"), space)
    return space


def libero(openvla: Path, tensorflow: Any) -> tuple[Callable[[Levels], Levels], Callable[[Levels], Levels]]:
    """`run_libero_eval.py`: from `agentview_image` to what the processor gets, and its crop alone."""
    names: dict[str, Any] = {"tf": tensorflow, "np": np, "Image": Image, "OPENVLA_V01_SYSTEM_PROMPT": ""}
    robot = openvla / "experiments" / "robot"
    image = functions(robot / "libero" / "libero_utils.py", names, "resize_image", "get_libero_image")
    action = functions(robot / "openvla_utils.py", names, "crop_and_resize", "get_vla_action")

    def crop(given: Levels) -> Levels:
        kept = list[Levels]()

        def processor(_: str, handed: Image.Image) -> None:
            kept.append(np.array(handed))
            raise GivenError

        with suppress(GivenError):
            action["get_vla_action"](None, processor, "openvla", {"full_image": given}, "task", "key", True)
        return kept[0]

    return lambda given: crop(image["get_libero_image"]({"agentview_image": given}, SIZE)), crop


def oft(checkout: Path, tensorflow: Any) -> Callable[[Levels], Levels]:
    """openvla-oft's: the environment turns the image, the policy's side does the rest."""
    names: dict[str, Any] = {"tf": tensorflow, "np": np, "Image": Image, "OPENVLA_IMAGE_SIZE": SIZE}
    typing = importlib.import_module("typing")
    names |= {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Tuple", "Union")}
    wanted = ("resize_image_for_policy", "crop_and_resize", "center_crop_image", "check_image_format")
    robot = checkout / "experiments" / "robot"
    policy = functions(robot / "openvla_utils.py", names, *wanted, "prepare_images_for_vla")
    environment = functions(robot / "libero" / "libero_utils.py", names, "get_libero_image")

    def prepared(given: Levels) -> Levels:
        turned = environment["get_libero_image"]({"agentview_image": given})
        (image,) = policy["prepare_images_for_vla"]([turned], SimpleNamespace(center_crop=True))
        return np.array(image)

    return prepared


def simpler(checkout: Path) -> Callable[[Levels], Levels]:
    path = checkout / "simpler_env" / "policies" / "openvla" / "openvla_model.py"
    method = functions(path, {"cv": importlib.import_module("cv2"), "np": np}, "_resize_image")["_resize_image"]
    return lambda given: np.asarray(method(SimpleNamespace(image_size=[SIZE, SIZE]), given))


def digest(levels: Levels) -> npt.NDArray[Any]:
    return np.array(hashlib.sha256(np.ascontiguousarray(levels).tobytes()).hexdigest())


def main(openvla: Path, oft_checkout: Path, simpler_checkout: Path) -> None:
    tf: Any = importlib.import_module("tensorflow")
    whole, crop = libero(openvla, tf)
    fine_tuned, area = oft(oft_checkout, tf), simpler(simpler_checkout)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (height, width) in SHAPES.items():
        given = seeded_picture(name, height, width)
        resized = tf.image.resize(given, (SIZE, SIZE), method="lanczos3", antialias=True)
        jpeg = tf.io.decode_image(tf.image.encode_jpeg(given), expand_animations=False, dtype=tf.uint8).numpy()
        results = {"libero": whole(given), "simpler": area(given)}
        same = (height, width) == (SIZE, SIZE)  # oft leaves JPEG and resize out there
        assert same or np.array_equal(fine_tuned(given), results["libero"]), name
        arrays[f"{name}/input"] = digest(given)
        arrays[f"{name}/jpeg"] = digest(jpeg)
        arrays[f"{name}/lanczos3"] = digest(tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8).numpy())
        arrays[f"{name}/crop"] = digest(crop(given))
        for script, levels in results.items():
            arrays[f"{name}/{script}"] = digest(levels)
            arrays[f"{name}/{script}/sample"] = levels[::16, ::16]
    write_npz(FOLDER / "evaluation_images.npz", arrays)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
