"""signSGD: a sign for each entry, and for a zero one that depends on the seed alone."""

import numpy as np
import pytest
from tests.compression.samples import decoded_of, normal, side_info_of

from fedpress.compression import errors
from fedpress.compression.encoders import sign_sgd


def test_signs_arrive_and_zeros_vote_by_the_seed() -> None:
    side_info, vector = side_info_of((2000,)), normal(2000)
    vector[1000:] = 0
    decoded = decoded_of(sign_sgd.signs(), vector, side_info, 1)
    np.testing.assert_array_equal(decoded[:1000], np.sign(vector[:1000]))
    assert set(decoded[1000:].tolist()) == {-1.0, 1.0} and abs(decoded[1000:].sum()) < 150
    np.testing.assert_array_equal(decoded, decoded_of(sign_sgd.signs(), vector, side_info, 1))
    assert (decoded != decoded_of(sign_sgd.signs(), vector, side_info, 2)).any()
    assert sign_sgd.signs().init(side_info.layout) is None
    assert decoded_of(sign_sgd.signs(), np.empty(0, np.float32), side_info_of()).size == 0
    with pytest.raises(errors.NonFiniteError):
        sign_sgd.signs().encode(np.full(2000, np.nan, np.float32), None, side_info, 0)
