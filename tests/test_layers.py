import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fairjax as fj
from fairjax.models import fourier, layers

pytestmark = pytest.mark.slow

IMAGES = ("NHWC", "HWIO", "NHWC")
SEQUENCES = ("NWC", "WIO", "NWC")

# Name: shape of the input, shape of the kernel, padding.
SIMPLE = {
    "one_by_one": ((3, 5, 6, 4), (1, 1, 4, 2), "VALID"),
    "one_channel": ((3, 9, 8, 1), (3, 3, 1, 6), "VALID"),
    "one_image": ((1, 9, 8, 3), (3, 3, 3, 6), "VALID"),
    "one_feature": ((2, 9, 8, 3), (3, 3, 3, 1), "SAME"),
    "same_padding": ((2, 9, 8, 3), (3, 4, 3, 5), "SAME"),
    "same_padding_at_the_start": ((2, 9, 8, 3), (2, 4, 3, 5), "SAME_LOWER"),
    "uneven_padding": ((2, 6, 5, 3), (3, 2, 3, 5), ((0, 3), (2, 1))),
    "negative_padding": ((2, 9, 8, 3), (3, 2, 3, 5), ((-1, 0), (2, -1))),
    "tall_kernel": ((2, 12, 7, 30), (9, 1, 30, 2), "VALID"),
    "wide_kernel": ((2, 7, 12, 30), (1, 9, 30, 2), "VALID"),
    "large_windows": ((2, 10, 9, 16), (7, 5, 16, 3), "SAME"),
    "large_windows_of_the_paper": ((2, 15, 15, 64), (7, 7, 64, 16), "VALID"),
    "large_windows_of_many_images": ((30, 11, 12, 32), (6, 6, 32, 20), "VALID"),
    "kernel_as_wide_as_the_image": ((2, 7, 50, 1), (3, 50, 1, 4), "VALID"),
    "kernel_as_large_as_the_image": ((2, 6, 6, 5), (6, 6, 5, 4), "VALID"),
    "one_pixel": ((2, 1, 1, 3), (1, 1, 3, 4), "VALID"),
    "short_sequence": ((3, 9, 4), (3, 4, 5), "SAME"),
    "sequence_of_words": ((3, 20, 60), (3, 60, 5), "VALID"),
}

# One case for each way to compute a convolution, for tests that take long to compile.
FORMS = (
    "uneven_padding",
    "large_windows",
    "large_windows_of_many_images",
    "kernel_as_wide_as_the_image",
    "sequence_of_words",
)

# Name: shape of the input, shape of the kernel, arguments that no fast form supports.
UNUSUAL = {
    "strides": ((2, 9, 8, 3), (3, 3, 3, 4), {"window_strides": (2, 1)}),
    "kernel_dilation": ((2, 9, 8, 3), (3, 3, 3, 4), {"rhs_dilation": (2, 1)}),
    "input_dilation": (
        (2, 9, 8, 3),
        (3, 3, 3, 4),
        {"lhs_dilation": (1, 2), "padding": ((0, 0), (1, 0))},
    ),
    "feature_groups": ((2, 9, 8, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "batch_groups": ((2, 9, 8, 3), (3, 3, 3, 4), {"batch_group_count": 2}),
    "channels_first": ((2, 3, 9, 8), (4, 3, 3, 3), {"dimension_numbers": None}),
    "channels_first_alike": ((3, 3, 3, 3), (3, 3, 3, 3), {"dimension_numbers": None}),
    "precision": ((2, 9, 8, 3), (3, 3, 3, 4), {"precision": "highest"}),
    "wider_result": ((2, 9, 8, 3), (3, 3, 3, 4), {"preferred_element_type": jnp.float32}),
    "kernel_beyond_the_image": ((2, 2, 8, 3), (3, 3, 3, 4), {}),
    "no_channels": ((2, 9, 8, 0), (3, 3, 0, 4), {}),
    "volumes": (
        (2, 4, 5, 6, 3),
        (2, 2, 2, 3, 4),
        {"window_strides": (1, 1, 1), "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}


def normals(seed, *shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def alike(ours, theirs, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = np.abs(other).max(initial=0.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def convolutions(name):
    """Our convolution and lax's, as functions of the input and the kernel."""
    image, _, padding = SIMPLE[name]
    arguments = {
        "window_strides": (1,) * (len(image) - 2),
        "padding": padding,
        "dimension_numbers": IMAGES if len(image) == 4 else SEQUENCES,
    }
    return (
        lambda x, kernel: layers.conv_general_dilated(x, kernel, **arguments),
        lambda x, kernel: lax.conv_general_dilated(x, kernel, **arguments),
    )


def with_gradients(convolve):
    """The output, and its gradients for a cotangent that differs everywhere."""

    def answer(x, kernel):
        y, pullback = jax.vjp(convolve, x, kernel)
        return y, pullback(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return answer


@pytest.mark.parametrize("name", SIMPLE)
def test_convolution_and_its_gradients_are_those_of_lax(name):
    ours, theirs = map(with_gradients, convolutions(name))
    x, kernel = normals(0, *SIMPLE[name][:2])
    alike(jax.jit(ours)(x, kernel), jax.jit(theirs)(x, kernel))


@pytest.mark.parametrize("name", SIMPLE)
def test_convolution_without_a_gradient_is_that_of_lax(name):
    ours, theirs = convolutions(name)
    x, kernel = normals(0, *SIMPLE[name][:2])
    alike(ours(x, kernel), theirs(x, kernel))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("name", FORMS)
def test_convolution_without_a_gradient_of_many_agents_is_that_of_lax(name, axes):
    ours, theirs = convolutions(name)
    shapes = [
        (2, 3, *shape) if axis == 0 else shape
        for shape, axis in zip(SIMPLE[name][:2], axes, strict=True)
    ]
    twice = [jax.vmap(jax.vmap(convolve, axes), axes) for convolve in (ours, theirs)]
    alike(*(jax.jit(convolve)(*normals(0, *shapes)) for convolve in twice))


@pytest.mark.parametrize("name", FORMS)
def test_directional_derivatives_of_convolution_are_those_of_lax(name):
    shapes = SIMPLE[name][:2]
    primals, tangents = normals(0, *shapes), normals(1, *shapes)
    ours, theirs = (
        jax.jit(lambda p, t, convolve=convolve: jax.jvp(convolve, p, t))(primals, tangents)
        for convolve in convolutions(name)
    )
    alike(ours, theirs)


@pytest.mark.parametrize("name", FORMS)
def test_convolution_in_double_precision_is_that_of_lax(name):
    ours, theirs = map(with_gradients, convolutions(name))
    with jax.enable_x64(True):
        x, kernel = normals(1, *SIMPLE[name][:2], dtype=jnp.float64)
        alike(jax.jit(ours)(x, kernel), jax.jit(theirs)(x, kernel), tolerance=1e-13)


@pytest.mark.parametrize("shared_input", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_many_agents_kernels_at_once_give_what_each_gives_alone(name, shared_input):
    ours, theirs = map(with_gradients, convolutions(name))
    image, kernel, _ = SIMPLE[name]
    x, kernels = normals(2, image if shared_input else (3, *image), (3, *kernel))
    together = jax.jit(jax.vmap(ours, (None if shared_input else 0, 0)))(x, kernels)
    alone = jax.jit(theirs)
    rows = [alone(x if shared_input else x[agent], kernels[agent]) for agent in range(3)]
    alike(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


@pytest.mark.parametrize("name", FORMS)
def test_gradients_and_many_agents_kernels_need_no_convolution_of_xla(name):
    ours, _ = convolutions(name)
    image, kernel, _ = SIMPLE[name]
    for function, kernel_shape in (
        (with_gradients(ours), kernel),
        (jax.vmap(ours, (None, 0)), (3, *kernel)),
        (jax.vmap(with_gradients(ours), (None, 0)), (3, *kernel)),
    ):
        program = jax.jit(function).lower(*normals(3, image, kernel_shape))
        assert "stablehlo.convolution" not in program.as_text()


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_convolutions_are_left_to_lax(name):
    image, kernel, arguments = UNUSUAL[name]
    arguments = {
        "window_strides": (1, 1),
        "padding": "VALID",
        "dimension_numbers": IMAGES,
        **arguments,
    }
    x, kernel = normals(4, image, kernel)
    alike(
        layers.conv_general_dilated(x, kernel, **arguments),
        lax.conv_general_dilated(x, kernel, **arguments),
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_narrow_and_whole_numbers_are_left_to_lax(dtype):
    x = jnp.arange(2 * 9 * 8 * 3).reshape(2, 9, 8, 3) % 7
    kernel = jnp.arange(3 * 3 * 3 * 4).reshape(3, 3, 3, 4) % 5
    arguments = (x.astype(dtype), kernel.astype(dtype), (1, 1), "SAME")
    ours = layers.conv_general_dilated(*arguments, dimension_numbers=IMAGES)
    theirs = lax.conv_general_dilated(*arguments, dimension_numbers=IMAGES)
    np.testing.assert_array_equal(ours, theirs)


def test_channels_that_do_not_fit_are_refused_as_lax_refuses_them():
    x, kernel = normals(5, (2, 9, 8, 3), (3, 3, 4, 5))
    with pytest.raises(ValueError, match="feature"):
        layers.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=IMAGES)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 9, 8, 3), {"kernel_size": (3, 5)}),
        ((9, 8, 3), {"kernel_size": (3, 3), "padding": 1}),
        ((4, 2, 9, 8, 3), {"kernel_size": (3, 3), "padding": "VALID"}),
        ((2, 9, 8, 3), {"kernel_size": (3, 3), "padding": "CIRCULAR"}),
        ((2, 9, 8, 3), {"kernel_size": (3, 3), "strides": 2}),
        ((2, 9, 3), {"kernel_size": (3,), "padding": "CAUSAL"}),
    ],
)
def test_a_flax_layer_with_the_hook_is_the_same_layer(shape, options):
    (x,) = normals(6, shape)
    plain = nn.Conv(5, **options)
    hooked = nn.Conv(5, **options, conv_general_dilated=layers.conv_general_dilated)
    variables = plain.init(jax.random.key(7), x)
    assert jax.tree.map(jnp.shape, hooked.init(jax.random.key(7), x)) == jax.tree.map(
        jnp.shape, variables
    )
    alike(hooked.apply(variables, x), plain.apply(variables, x))


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((2, 14, 14, 3), (7, 7, 3, 4)),
        ((1, 9, 6, 2), (3, 5, 2, 3)),
        ((3, 5, 8, 1), (5, 8, 1, 2)),
        ((2, 1, 4, 2), (1, 2, 2, 3)),
        ((2, 7, 1, 2), (3, 1, 2, 3)),
        ((2, 2, 2, 1), (1, 1, 1, 2)),
    ],
)
def test_convolution_by_transforms_is_that_of_lax(image, kernel):
    x, kernel = normals(11, image, kernel)
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=IMAGES)
    alike(fourier.convolve(x, kernel), theirs)


def test_large_kernels_are_met_by_transforms_on_a_cpu_alone(monkeypatch):
    x, kernel = normals(12, (32, 14, 14, 64), (7, 7, 64, 16))
    small = kernel[:3, :3]
    assert layers._fourier_is_faster(x, kernel)
    assert not layers._fourier_is_faster(x, small)
    assert not layers._fourier_is_faster(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not layers._fourier_is_faster(x, kernel)


def pool_by_lax(x, window):
    window = (1, *window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 2), (1, 4), (7, 6)])
def test_pooling_and_its_gradient_are_those_of_a_window_reduction(window, ties):
    (x,) = normals(8, (3, 7, 6, 4))
    x = jnp.round(x) if ties else x
    np.testing.assert_array_equal(layers.max_pool(x, window), pool_by_lax(x, window))
    y, ours = jax.vjp(lambda x: layers.max_pool(x, window), x)
    twin, theirs = jax.vjp(lambda x: pool_by_lax(x, window), x)
    np.testing.assert_array_equal(y, twin)
    (cotangent,) = normals(9, y.shape)
    np.testing.assert_array_equal(ours(cotangent)[0], theirs(cotangent)[0])


# Name: shape of the input, shape of the kernel, padding, whether tiles are used.
POOLED = {
    "of_the_paper": ((3, 32, 32, 3), (5, 5, 3, 16), "VALID", True),
    "even_kernel": ((2, 9, 11, 3), (4, 2, 3, 5), "VALID", True),
    "even_kernel_up_to_the_border": ((2, 11, 9, 2), (4, 4, 2, 3), "VALID", True),
    "one_row": ((2, 6, 12, 4), (5, 2, 4, 4), "VALID", True),
    "padding": ((2, 7, 8, 6), (3, 3, 6, 2), "SAME", True),
    "small_tile": ((2, 9, 8, 1), (3, 3, 1, 6), "VALID", False),
    "large_tile": ((2, 10, 9, 16), (3, 3, 16, 3), "VALID", False),
    "fourier": ((30, 11, 12, 3), (6, 6, 3, 90), "VALID", False),
}


@pytest.mark.parametrize("name", POOLED)
def test_a_convolution_and_its_pool_are_those_of_lax(name):
    *shapes, padding, tiled = POOLED[name]
    arguments = {"window_strides": (1, 1), "padding": padding, "dimension_numbers": IMAGES}

    def theirs(x, kernel):
        return pool_by_lax(lax.conv_general_dilated(x, kernel, **arguments), (2, 2))

    def ours(x, kernel):
        return layers.conv_max_pool(x, kernel, **arguments)

    x, kernel = normals(0, *shapes)
    alike(ours(x, kernel), theirs(x, kernel))
    alike(*(jax.jit(with_gradients(each))(x, kernel) for each in (ours, theirs)))
    many = jax.vmap(ours)(*normals(0, *((2, *shape) for shape in shapes)))
    alike(many, jax.vmap(theirs)(*normals(0, *((2, *shape) for shape in shapes))))
    text = str(jax.make_jaxpr(ours)(x, kernel))
    assert ("reduce_window" not in text) == tiled


@pytest.mark.parametrize("name", ["strides", "feature_groups", "precision", "channels_first"])
def test_an_unusual_convolution_is_pooled_too(name):
    shape, kernel, arguments = UNUSUAL[name]
    given = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": IMAGES} | arguments
    x, kernel = normals(0, shape, kernel)
    theirs = layers.max_pool(lax.conv_general_dilated(x, kernel, **given))
    np.testing.assert_array_equal(layers.conv_max_pool(x, kernel, **given), theirs)


def test_of_equal_outputs_of_a_convolution_the_first_has_the_gradient():
    x, kernel = jnp.ones((1, 4, 4, 16)), jnp.ones((1, 1, 16, 1))
    gradient = jax.grad(
        lambda x: layers.conv_max_pool(x, kernel, (1, 1), "VALID", dimension_numbers=IMAGES).sum()
    )(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0] * 4] * 2)


def test_elsewhere_than_on_a_cpu_a_convolution_is_pooled_by_xla(monkeypatch):
    x, kernel = normals(0, *POOLED["of_the_paper"][:2])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    pooled = layers.conv_max_pool
    text = str(
        jax.make_jaxpr(lambda x, k: pooled(x, k, (1, 1), "VALID", dimension_numbers=IMAGES))(
            x, kernel
        )
    )
    assert "reduce_window" in text


def test_pooling_takes_any_leading_axes():
    (x,) = normals(10, (2, 3, 5, 4, 1))
    pooled = layers.max_pool(x)
    assert pooled.shape == (2, 3, 2, 2, 1)
    np.testing.assert_array_equal(pooled[1], layers.max_pool(x[1]))
    np.testing.assert_array_equal(pooled[1, 2], layers.max_pool(x[1, 2]))


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_nan_makes_its_own_window_nan_and_no_other(place):
    x = jnp.ones((1, 4, 4, 1)).at[0, place[0], place[1], 0].set(jnp.nan)
    expected = [[jnp.nan, 1.0], [1.0, 1.0]]
    np.testing.assert_array_equal(layers.max_pool(x)[0, :, :, 0], expected)
    differentiated, _ = jax.vjp(layers.max_pool, x)
    np.testing.assert_array_equal(differentiated[0, :, :, 0], expected)


def test_whole_numbers_can_be_pooled():
    x = jnp.arange(-16, 0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.max_pool(x)[0, :, :, 0], [[-11, -9], [-3, -1]])


@pytest.mark.parametrize("window", [(0, 2), (2, 1.5), (2, -1)])
def test_a_window_that_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match=r"`window\[[01]\]` must be a whole number"):
        layers.max_pool(jnp.ones((1, 4, 4, 1)), window)


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"`window` must fit .* got window=\(5, 2\)"):
        layers.max_pool(jnp.ones((1, 4, 4, 1)), (5, 2))


def test_the_convolution_of_the_papers_networks_can_be_chosen():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    gradients = []
    for convolution, by_xla in (
        (layers.conv_general_dilated, False),
        (lax.conv_general_dilated, True),
    ):
        model = fj.models.mnist_cnn(convolution=convolution)
        gradient = jax.grad(lambda params, model=model: model.apply(params, x).sum())
        params = model.init(jax.random.key(0))
        gradients.append(gradient(params))
        # Only evaluation may keep the convolution of XLA; see the module.
        count = str(jax.make_jaxpr(gradient)(params)).count("conv_general_dilated[")
        assert (count > 0) == by_xla
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)
