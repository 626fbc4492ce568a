"""Bad options: one sentence with the value, the bound and the nearest valid name, never another kind of error."""

import pytest

from basedbench.errors import UserError
from basedbench.mixers import check_options, get_mixer, mixer_names

BAD = [
    ("bassed", 64, {}, ["'bassed'", "'based'"]),
    ("transformer", 64, {}, ["valid:", "attention", "mamba2"]),
    ("based", 64, {"feature_dims": 3}, ["'feature_dims'", "3", "'feature_dim'"]),
    ("based", 64, {"feature_dim": 0}, ["'feature_dim' = 0", "1"]),
    ("based", 64, {"feature_dim": 16.5}, ["'feature_dim' = 16.5", "takes a whole number"]),
    ("based", 64, {"feature_dim": "wide"}, ["'feature_dim' = 'wide'", "takes a whole number"]),
    ("based", 64, {"window": -1}, ["'window' = -1", "0"]),
    ("based", 64, {"feature_dim": 0, "heads": 0}, ["'feature_dim' = 0", "'heads' = 0"]),
    ("based", 64, {"heads": 5}, ["heads = 5", "64", "4"]),
    ("based", 64, {"d_model": 32}, ["unknown option 'd_model'"]),
    ("based", 64, {7: 1}, ["7"]),
    ("based", 64, ["feature_dim"], ["options"]),
    ("based", 0, {}, ["d_model = 0"]),
    ("based", 64.0, {}, ["d_model = 64.0"]),
    ("sliding_window", 64, {"window": 0}, ["'window' = 0", "1"]),
    ("attention", 64, {"heads": 50}, ["heads = 50", "64", "nearest: 64"]),
    ("attention", 64, {"dropout": 1.0}, ["'dropout' = 1.0", "less than 1"]),
    ("attention", 64, {"dropout": float("nan")}, ["'dropout' = nan", "finite"]),
    ("linear_attention", 64, {"feature_dim": 0}, ["'feature_dim' = 0", "1"]),
    ("linear_attention", 64, {"feature_map": "rellu"}, ["'feature_map' = 'rellu'", "did you mean 'relu'"]),
    ("linear_attention", 64, {"feature_map": "taylor"}, ["'feature_map' = 'taylor'", "did you mean 'taylor"]),
    ("linear_attention", 64, {"feature_map": "softmax"}, ["'feature_map' = 'softmax'", "valid: all_poly, cosformer"]),
    ("linear_attention", 64, {"feature_map": 3}, ["'feature_map' = 3", "valid:"]),
    ("linear_attention", 64, {"features": 32}, ["'features' = 32", "performer or all_poly", "pos_elu"]),
    ("based", 64, {"feature_dim": True}, ["'feature_dim' = true", "takes a number"]),
    ("linear_attention", 64, {"feature_map": "relu", "max_length": 64}, ["'max_length' = 64", "cosformer", "relu"]),
    ("linear_attention", 64, {"feature_map": "performer", "features": -1}, ["'features' = -1", "0"]),
    ("base_conv", 64, {"kernel_size": 1}, ["'kernel_size' = 1", "2"]),
    ("gla", 64, {"heads": 5}, ["heads = 5", "expand_k * d_model = 32", "nearest below: 4"]),
    ("gla", 12, {"expand_v": 0.05}, ["expand_v = 0.05", "d_model = 12"]),
    ("gla", 64, {"d_conv": 1}, ["d_conv = 1", "at least 2"]),
    ("retnet", 64, {"heads": 5}, ["heads = 5", "64", "nearest: 4"]),
    ("retnet", 64, {"heads": 4, "expand_v": 0.1}, ["heads = 4", "expand_v * d_model = 6", "nearest below: 3"]),
    ("retnet", 12, {"heads": 4}, ["heads = 4", "each head 3 of d_model = 12"]),
    ("rwkv4", 64, {"depth": 2.0}, ["'depth' = 2.0", "1"]),
    ("hyena", 64, {"emb_dim": 4}, ["emb_dim = 4", "odd", "5"]),
    ("hyena", 64, {"max_length": 1}, ["'max_length' = 1", "2"]),
    ("h3", 64, {"d_state": 7}, ["'d_state' = 7", "multiple of 2"]),
    ("h3", 64, {"head_dim": 7}, ["head_dim = 7", "64", "nearest below: 4"]),
    ("mamba", 64, {"d_state": 0}, ["'d_state' = 0", "1"]),
    ("mamba2", 16, {}, ["head_dim = 64", "32", "nearest below: 32"]),
    ("mamba2", 24, {"head_dim": 20}, ["head_dim = 20", "48", "nearest below: 16"]),
    ("mamba2", 64, {"head_dim": 32, "groups": 3}, ["groups = 3", "4 heads"]),
    ("delta_net", 64, {"heads": 3}, ["heads = 3", "64", "nearest: 2"]),
    ("delta_net", 64, {"gate": True}, ["unknown option 'gate'"]),
    ("gated_delta_net", 64, {"d_conv": 1}, ["'d_conv' = 1", "2"]),
    ("kda", 64, {"rank": -1}, ["'rank' = -1", "0"]),
    ("rwkv7", 96, {}, ["head_dim = 64", "96", "nearest below: 48"]),
]


@pytest.mark.parametrize(("name", "d_model", "options", "parts"), BAD)
def test_bad_options(name, d_model, options, parts):
    with pytest.raises(UserError) as caught:
        check_options(name, d_model, options)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize("options", [{"window": 0}, {"windows": 3}, {"heads": 5}])
def test_the_constructor_refuses_them_too(options):
    with pytest.raises(UserError, match=next(iter(options))):
        get_mixer("sliding_window")(64, **options)


def test_defaults_are_filled_in():
    assert check_options("based", 64, {"feature_dim": 8}) == {"feature_dim": 8, "heads": 1, "window": 0}
    assert check_options("h3", 64, {}) == {"d_state": 16, "head_dim": 2}
    assert check_options("mamba2", 64, {}) == {"d_state": 16, "d_conv": 4, "expand": 2, "head_dim": 64, "groups": 1}


def test_a_whole_float_is_a_whole_number():
    assert check_options("based", 64, {"feature_dim": 8.0}) == check_options("based", 64, {"feature_dim": 8})


def test_every_option_has_a_description():
    for name in mixer_names():
        for option, field in get_mixer(name).Options.model_fields.items():
            assert field.description, f"{name}.{option}"
