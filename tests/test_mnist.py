"""The digits: shape, range, orientation, and a split that never moves."""

import numpy as np

from minexp import mnist


def test_mnist_digits_have_shape_range_and_balance():
    digits, labels = mnist.digits()
    assert digits.shape == (5000, 28, 28) and digits.dtype == np.float32
    assert labels.shape == (5000,) and labels.dtype == np.int64
    assert digits.min() == 0 and digits.max() == 1
    np.testing.assert_array_equal(digits * 255, np.round(digits * 255))
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)


def test_mnist_digits_are_upright():
    digits, labels = mnist.digits()
    sevens = digits[labels == 7].mean(axis=0)
    assert sevens[6:11].mean() > sevens[18:23].mean()  # a seven's bar is its top


def test_changing_the_returned_digits_changes_nothing_for_the_next_caller():
    digits, labels = mnist.digits()
    digits[:], labels[:] = 7, 7
    again, labels_again = mnist.digits()
    assert again.max() == 1 and labels_again.max() == 9


def test_mnist_split_is_disjoint_complete_stratified_and_sorted():
    train, test = mnist.split()
    labels = mnist.digits()[1]
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(5000))
    np.testing.assert_array_equal(np.bincount(labels[train]), [400] * 10)
    np.testing.assert_array_equal(np.bincount(labels[test]), [100] * 10)
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()


def test_mnist_split_is_the_recorded_one():
    first, second = mnist.split(), mnist.split()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[1][:5].tolist() == [3, 7, 21, 22, 24]  # trained weights depend on it
