"""Laws of action tokens, and the table that OpenVLA's arithmetic gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.openvla import ActionTokens
from edge_vla.spec import OPENVLA_7B, ActionSpec

SEVEN_B = ActionTokens(OPENVLA_7B.action)
specs = st.builds(ActionSpec, bins=st.integers(2, 300), end=st.integers(400, 40000))


@given(specs, st.data())
def test_decode_then_encode_is_identity(spec: ActionSpec, data: st.DataObject) -> None:
    tokens = ActionTokens(spec)
    # The two lowest ids decode alike, so only the upper of them comes back.
    token = data.draw(st.integers(spec.first + 1, spec.end - 1))
    assert tokens.encode(tokens.decode([token])).tolist() == [token]


@given(specs, st.floats(-1, 1))
def test_encode_is_within_half_a_bin(spec: ActionSpec, value: float) -> None:
    tokens = ActionTokens(spec)
    width = (spec.high - spec.low) / (spec.bins - 1)
    assert abs(tokens.decode(tokens.encode(np.array([value])).tolist())[0] - value) <= width / 2 + 1e-12


@pytest.mark.parametrize(
    ("token", "centre"),
    [(31999, 0), (31998, 1), (31872, 127), (31746, 253), (31745, 254), (31744, 254), (2, 254), (32000, 0), (32063, 0)],
)
def test_openvla_table(token: int, centre: int) -> None:
    assert SEVEN_B.bins([token]).tolist() == [centre]


def test_openvla_centres() -> None:
    assert len(SEVEN_B.centres) == 255
    assert SEVEN_B.centres[0] == -0.996078431372549
    assert SEVEN_B.centres[127] == 0.0
    assert SEVEN_B.centres[254] == 0.996078431372549
    assert [SEVEN_B.is_action(token) for token in (31743, 31744, 31999, 32000)] == [False, True, True, False]
