"""Cameras: a real HTTP stream, real files, OpenCV where it is installed; and what is wrong with each of them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.robot.stream import State, Stream, jpeg
from edge_vla.errors import BackendError, FrameError, UsageError
from edge_vla.robot.cameras import open_camera
from edge_vla.robot.cameras.checked import Checked
from edge_vla.robot.cameras.mjpeg import MjpegCamera, Parts, without_password
from edge_vla.robot.cameras.newest import Newest
from edge_vla.robot.cameras.opencv import check, opencv
from edge_vla.robot.faces import CameraError, Picture
from edge_vla.robot.units import Sight

SOON = 10.0


def noise(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Counting:
    """Draws another picture each time: its number in its brightness."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> np.ndarray:
        self.drawn += 1
        return np.full((32, 32, 3), 20 + self.drawn % 200, np.uint8)


def failing(camera: MjpegCamera, fault: str) -> CameraError:
    """The failure, once it is this one."""
    until, after, found = time.monotonic() + SOON, camera.number, ""
    while time.monotonic() < until:
        try:
            after = camera.newest(after, time.monotonic() + 0.1).number
        except CameraError as error:
            if error.fault == fault:
                return error
            found = str(error)
    raise AssertionError(f"no {fault} in time, but {found}")


parts = st.lists(st.binary(min_size=1, max_size=300).filter(lambda data: b"--edge" not in data), max_size=5)


@given(parts, st.booleans(), st.lists(st.integers(0, 3000), max_size=8), st.sampled_from([b"edge", b"--edge"]))
def test_parts_come_out_as_they_went_in_however_they_arrive(
    sent: list[bytes], sized: bool, places: list[int], boundary: bytes
) -> None:
    body = b"".join(
        b"--edge\r\nContent-Type: image/jpeg\r\n"
        + (b"Content-Length: %d\r\n" % len(data) if sized else b"")
        + b"\r\n"
        + data
        + b"\r\n"
        for data in sent
    )
    body += b"--edge\r\n"
    ends = sorted({place % (len(body) + 1) for place in places})
    reader = Parts(boundary)
    pieces = [body[a:b] for a, b in zip([0, *ends], [*ends, len(body)], strict=True)]
    found = [part for piece in pieces for part in reader.feed(piece)]
    assert found == [data if sized else data.partition(b"\r\n--edge")[0] for data in sent]


def test_what_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="no boundary"):
        Parts(b"edge").feed(b"x" * 10_000)
    with pytest.raises(ValueError, match="more than 16 MiB"):
        Parts(b"edge").feed(b"--edge\r\nContent-Length: 99999999\r\n\r\n")


def test_a_stream_s_newest_picture_and_no_older_one() -> None:
    draw = Counting()
    with Stream(draw, 100) as stream:
        camera = MjpegCamera(stream.address)
        try:
            first = camera.newest(0, time.monotonic() + SOON)
            assert first.image.shape == (32, 32, 3)
            assert first.image.dtype == np.uint8
            time.sleep(0.3)
            before, now = draw.drawn, time.monotonic()
            second = camera.newest(first.number, time.monotonic() + SOON)
            assert second.number > first.number + 1
            assert now - second.taken < 0.25
            assert draw.drawn - 15 < before
        finally:
            camera.close()


@pytest.mark.parametrize(
    ("state", "fault"),
    [("silent", "silent"), ("unplugged", "unplugged"), ("damaged", "unreadable")],
)
def test_a_stream_that_fails_and_comes_back(state: State, fault: str) -> None:
    with Stream(Counting(), 50) as stream:
        camera = MjpegCamera(stream.address)
        try:
            number = camera.newest(0, time.monotonic() + SOON).number
            stream.state = state
            assert stream.address in str(failing(camera, fault))
            stream.state = "well"
            until = time.monotonic() + SOON
            while True:
                try:
                    assert camera.newest(number, time.monotonic() + 0.2).number > number
                    break
                except CameraError:
                    assert time.monotonic() < until
        finally:
            camera.close()


def test_a_stream_that_is_not_there_and_a_page_that_is_no_stream() -> None:
    camera = MjpegCamera("http://user:secret@127.0.0.1:9/stream")
    try:
        error = failing(camera, "unplugged")
        assert "check its power, its cable and --camera" in str(error)
        assert "secret" not in str(error)
    finally:
        camera.close()
    with Stream(Counting(), 50) as stream:
        stream.state = "unplugged"
        camera = MjpegCamera(stream.address)
        try:
            assert "HTTP 503" in str(failing(camera, "unplugged"))
        finally:
            camera.close()


def test_a_password_is_sent_and_not_shown() -> None:
    shown, headers = without_password("http://me:p%40ss@cam.local:81/video?x=1")
    assert shown == "http://cam.local:81/video?x=1"
    assert headers == {"Authorization": "Basic bWU6cEBzcw=="}
    assert without_password("http://cam.local/video") == ("http://cam.local/video", {})


def test_a_folder_s_pictures_each_once_and_in_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        Image.fromarray(noise(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "frames.jsonl").write_text("{}")
    camera = open_camera(str(tmp_path))
    seen, number = [], 0
    for _ in range(3):
        again = camera.newest(number, 0.0)  # until it has been acted on it stays
        picture = camera.newest(number, 0.0)
        assert picture.number == again.number
        assert time.monotonic() - picture.taken < SOON
        number = picture.number
        seen.append(picture.image)
    assert all(np.array_equal(image, noise(i)) for i, image in enumerate(seen))
    with pytest.raises(CameraError, match="over after 3 pictures") as caught:
        camera.newest(number, 0.0)
    assert caught.value.fault == "ended"


def test_a_folder_goes_on_after_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    """It was over there, and the run had ended well."""
    for i in (0, 2):
        Image.new("RGB", (4, 4), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"cut off")
    camera = open_camera(str(tmp_path))
    first = camera.newest(0, 0.0)
    with pytest.raises(CameraError, match=r"1\.png") as caught:
        camera.newest(first.number, 0.0)
    assert caught.value.fault == "unreadable"
    assert camera.newest(first.number, 0.0).image[0, 0, 0] == 120
    with pytest.raises(CameraError, match="over after 2 pictures"):
        camera.newest(2, 0.0)


@pytest.mark.parametrize("source", ["", "http://[", "https://[::1", "rtsp://[", "a" * 300, "rtsp://h:port/x"])
def test_a_source_that_cannot_be_is_refused_by_name(source: str) -> None:
    with pytest.raises(UsageError, match="expected a number or /dev/video0"):
        open_camera(source)


def test_one_picture_is_a_camera_for_one_turn(tmp_path: Path) -> None:
    Image.fromarray(noise(3)).save(tmp_path / "one.png")
    camera = open_camera(str(tmp_path / "one.png"))
    assert np.array_equal(camera.newest(0, 0.0).image, noise(3))
    with pytest.raises(CameraError):
        camera.newest(1, 0.0)


def test_a_picture_that_was_looked_at_and_not_acted_on_is_there_again(tmp_path: Path) -> None:
    """The first answer, which is not sent, and a turn whose policy is busy, use no picture up."""
    Image.fromarray(noise(3)).save(tmp_path / "one.png")
    camera = Checked(open_camera(str(tmp_path / "one.png")), Sight())
    first = camera.newest(0, 0.0)
    again = Checked(Retaken(first), Sight())  # and is not frozen, however long the policy was busy
    assert [again.newest(0, 0.0).number for _ in range(3)] == [1, 1, 1]
    assert camera.newest(0, 0.0).number == 1
    with pytest.raises(CameraError, match="over after 1 pictures"):
        camera.newest(1, 0.0)


def test_what_is_no_camera_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="no picture in it"):
        open_camera(str(tmp_path))
    for source in ("nonsense", str(tmp_path / "gone.png"), "ftp://host/x"):
        with pytest.raises(UsageError, match="expected a number or /dev/video0"):
            open_camera(source)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CameraError) as caught:
        open_camera(str(tmp_path / "broken.png")).newest(0, 0.0)
    assert caught.value.fault == "unreadable"


def test_a_device_that_is_not_there_and_one_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CameraError, match=r"ls /dev/video\*"):
        check(str(tmp_path / "video9"))
    (tmp_path / "video0").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests run as root, who may open everything
    monkeypatch.setattr(Path, "group", lambda self: "video")
    with pytest.raises(CameraError, match=r"no permission .* sudo usermod -aG video \$USER"):
        check(str(tmp_path / "video0"))


def test_a_camera_s_group_without_a_name_is_said_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(path: Path) -> str:
        raise KeyError(f"getgrgid(): gid not found: {path}")

    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "group", nameless)
    with pytest.raises(CameraError, match=rf"its group is {device.stat().st_gid}"):
        check(str(device))


def test_without_opencv_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(BackendError, match=r"pip install 'edge-vla\[act\]'"):
        opencv()


def test_opencv_reads_a_stream_and_a_video_file(tmp_path: Path) -> None:
    """Its way through V4L2 and RTSP needs their devices; the reader's thread and its colours are the same."""
    cv2 = pytest.importorskip("cv2", reason="pip install 'edge-vla[act]'")
    from edge_vla.robot.cameras.opencv import OpenCvCamera

    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 250
    with Stream(lambda: red, 50) as stream:
        camera = OpenCvCamera(stream.address)
        try:
            first = camera.newest(0, time.monotonic() + SOON)
            second = camera.newest(first.number, time.monotonic() + SOON)
            assert second.number > first.number
            assert np.abs(second.image.astype(int).mean((0, 1)) - [250, 0, 0]).max() < 12
            stream.state = "unplugged"
            assert "check its power" in str(failing(camera, "unplugged"))  # type: ignore[arg-type]
        finally:
            camera.close()
    writer = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(red[..., ::-1])
    writer.release()
    video = open_camera(str(tmp_path / "x.avi"))
    assert np.abs(video.newest(0, 0.0).image.astype(int).mean((0, 1)) - [250, 0, 0]).max() < 12
    video.newest(1, 0.0), video.newest(2, 0.0)
    with pytest.raises(CameraError) as caught:
        video.newest(3, 0.0)
    assert caught.value.fault == "ended"
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(FrameError, match="neither a picture nor a video"):
        open_camera(str(tmp_path / "x.mp4"))


class Scripted:
    """Pictures as a test gives them, a tenth of a second apart."""

    name = "scripted"

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images, self.number = images, 0

    def newest(self, after: int, until: float) -> Picture:
        assert after <= self.number
        self.number += 1
        return Picture(self.images[self.number - 1], self.number / 10, self.number)

    def close(self) -> None: ...


class Retaken:
    """The same picture whenever it is looked at, ten seconds later each time."""

    name = "retaken"

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def newest(self, after: int, until: float) -> Picture:
        self.picture = Picture(self.picture.image, self.picture.taken + 10.0, self.picture.number)
        return self.picture

    def close(self) -> None: ...


def faults(images: list[np.ndarray], sight: Sight) -> list[str]:
    camera, found = Checked(Scripted(images), sight), list[str]()
    for _ in images:
        try:
            camera.newest(0, 0.0)
            found.append("")
        except CameraError as error:
            found.append(error.fault)
    return found


def test_a_frozen_picture_is_one_that_stays_the_same_for_longer_than_declared() -> None:
    same = [noise(0)] * 5
    assert faults([noise(1), *same, noise(2), *same], Sight(frozen_ms=350)) == [
        *[""] * 5,
        "frozen",
        *[""] * 5,
        "frozen",
    ]
    nearly = [noise(0), *(noise(0) for _ in range(8))]
    for i, image in enumerate(nearly):
        image[0, 0, 0] = i
    assert faults(nearly, Sight(frozen_ms=350)) == [""] * 9
    assert faults(same * 4, Sight(frozen_ms=0)) == [""] * 20


def test_a_black_picture_is_none_whatever_its_noise() -> None:
    dark = [(noise(i) % 6).astype(np.uint8) for i in range(3)]
    assert faults([*dark, noise(9)], Sight()) == ["black", "black", "black", ""]
    assert faults(dark, Sight(black=0)) == ["", "", ""]


def test_a_picture_that_cannot_be_read_is_not_looked_at_twice() -> None:
    from edge_vla.robot.cameras.pictures import decoded

    slot = Newest("slot", lambda data: decoded(data, "slot"))
    slot.put(b"no picture")
    with pytest.raises(CameraError) as caught:
        slot.newest(0, time.monotonic() + 1)
    assert caught.value.fault == "unreadable"
    with pytest.raises(CameraError) as caught:
        slot.newest(0, time.monotonic() + 0.01)
    assert caught.value.fault == "silent"
    slot.put(jpeg(noise(1)))
    assert slot.newest(0, time.monotonic() + 1).number == 2


def test_a_loop_that_waits_is_woken_by_the_next_picture() -> None:
    slot = Newest("slot")
    slot.put(noise(0))
    timer = threading.Timer(0.05, slot.put, [noise(1)])
    timer.start()
    assert slot.newest(1, time.monotonic() + SOON).number == 2
    slot.fail(CameraError("unplugged", "gone"))
    with pytest.raises(CameraError, match="gone"):
        slot.newest(2, time.monotonic() + 0.01)
