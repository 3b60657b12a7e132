"""Times Opacus on the same network, loss and batch, side by side with ours.

  pip install -e .[bench]
  python tests/tools/opacus_step.py --model=mnist --batch_size=512 --rounds=7

Opacus takes records and generated images as one batch and clips each example to C1 with Adam behind
it: DP-SGD. 'hooks' keeps every example's gradient; 'ghost' takes the norms first, and the gradient
of the weighted losses in a second backward pass. Before anything is timed, the weights of our
discriminator are copied into the PyTorch one and the outputs of the two compared.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import warnings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# PyTorch's threads otherwise spin while they wait for each other. Where anything else wants a core,
# that makes its steps many times slower, and the comparison would flatter ours.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import numpy as np
from absl import app, flags

try:
    import opacus
    import torch
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    from tf_efsgd.benchmark import steps, timing, variants
    from tf_efsgd.machine import machine
except ImportError as error:
    sys.exit(f'opacus_step: {error}. In the folder of the project: pip install -e .[bench]')

F = torch.nn.functional
_OURS = (
    variants.Variant('ours: plain', 'plain', 'none', 0, 'ours: plain'),
    variants.Variant('ours: DP-SGD', 'dp_sgd', 'fast', 0, 'ours: DP-SGD'),
    variants.Variant('ours: error feedback', 'error_feedback', 'fast', 0, 'ours: error feedback'),
)


class Discriminator(torch.nn.Module):
    """`models.discriminator.build_discriminator` in PyTorch, images [n, C, H, W]."""

    def __init__(self, networks: variants.Networks):
        super().__init__()
        self.size, _, channels = networks.image_shape
        self.stride = int(np.gcd(self.size, 4))
        width, size = networks.width, self.size // self.stride
        # A dense layer over patches.
        self.patches = torch.nn.Conv2d(channels, width, self.stride, self.stride)
        self.convolutions = torch.nn.ModuleList()
        self.paddings = []
        while size > 4:
            self.convolutions.append(torch.nn.Conv2d(width, 2 * width, 4, 2))
            # 'same': what is odd is put at the end.
            total = max((-(-size // 2) - 1) * 2 + 4 - size, 0)
            self.paddings.append((total // 2, total - total // 2))
            width, size, self.stride = 2 * width, -(-size // 2), 2 * self.stride
        self.logits = torch.nn.Linear(width * size * size, networks.num_classes)
        self.reconstruction = torch.nn.Linear(width, self.stride * self.stride * channels)

    def forward(self, images):
        x = F.leaky_relu(self.patches(images), 0.2)
        for convolution, padding in zip(self.convolutions, self.paddings):
            x = F.leaky_relu(convolution(F.pad(x, padding * 2)), 0.2)
        x = x.permute(0, 2, 3, 1)
        n, rows, columns, _ = x.shape
        # Ghost clipping of a linear layer knows [n, features] and [n, positions, features] only.
        patches = torch.tanh(self.reconstruction(x.flatten(1, 2)))
        patches = patches.reshape(n, rows, columns, self.stride, self.stride, -1)
        whole = patches.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, *[rows * self.stride] * 2)
        start = (whole.shape[2] - self.size) // 2
        kept = slice(start, start + self.size)
        return self.logits(x.flatten(1)), whole[:, :, kept, kept]

    def copy_weights(self, discriminator) -> None:
        """Takes the weights of the Keras model."""
        own = [self.patches, *self.convolutions]
        theirs = [layer for layer in discriminator.layers if layer.weights]
        # Keras orders layers by depth: the two heads come last.
        heads = {layer.units: layer for layer in theirs[len(own) :]}
        linear = [self.logits, self.reconstruction]
        layers = [*zip(own, theirs), *((to, heads[to.out_features]) for to in linear)]
        for to, layer in layers:
            kernel, bias = layer.get_weights()
            if isinstance(to, torch.nn.Conv2d):
                out, channels, height, width = to.weight.shape
                kernel = kernel.reshape(height, width, channels, out).transpose(3, 2, 0, 1)
            else:
                kernel = kernel.T
            to.weight.data = torch.tensor(np.ascontiguousarray(kernel))
            to.bias.data = torch.tensor(bias)


def losses_of(network, images, labels, generated):
    """float32 [2 n]: of n records, then of n generated images, as `steps.drop_in_losses`."""
    images, count = images.float() / 127.5 - 1.0, len(images)
    logits, reconstructions = network(torch.cat([images, generated]))
    realness = logits.gather(1, labels.repeat(2)[:, None])[:, 0]
    errors = (images - reconstructions[:count]).square().sum((1, 2, 3))
    real = F.softplus(-realness[:count]) + steps.RECONSTRUCTION_WEIGHT * errors
    return torch.cat([real, F.softplus(realness[count:])])


def build_run(kind: str, network: torch.nn.Module, data) -> timing.Run:
    """One step of 'plain' PyTorch, Opacus with 'hooks' or 'ghost' clipping."""
    adam = torch.optim.Adam(network.parameters(), steps.LEARNING_RATE, (steps.ADAM_BETA_1, 0.999))
    mechanism = {
        'noise_multiplier': steps.NOISE_MULTIPLIER,
        'max_grad_norm': steps.L2_NORM_CLIP,
        'expected_batch_size': 2 * len(data[0]),
    }
    if kind == 'plain':
        module, optimizer = network, adam
    elif kind == 'hooks':
        module = opacus.GradSampleModule(network)
        optimizer = DPOptimizer(adam, **mechanism)
    else:
        module = opacus.grad_sample.GradSampleModuleFastGradientClipping(
            network, max_grad_norm=steps.L2_NORM_CLIP, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(adam, **mechanism)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            losses = losses_of(module, *data)
            if kind == 'ghost':
                DPTensorFastGradientClipping(module, optimizer, losses).backward()
            else:
                losses.mean().backward()
            optimizer.step()

    return run


def to_torch(images, labels, generated):
    """The data of `steps.make_data`, channels first."""
    images, generated = (torch.tensor(x.numpy().transpose(0, 3, 1, 2)) for x in (images, generated))
    return images.contiguous(), torch.tensor(labels.numpy()).long(), generated.contiguous()


def check_same(networks, data, torch_data) -> None:
    """Ends the program unless the two losses agree on the batch with the same weights."""
    gan = steps.build_gan(networks, _OURS[0], data[2])
    network = Discriminator(networks)
    network.copy_weights(gan.discriminator)
    ours = steps.drop_in_losses(gan.discriminator, *data).numpy()
    theirs = losses_of(network, *torch_data).detach().numpy()
    parameters = sum(p.numel() for p in network.parameters())
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert parameters == gan.discriminator.count_params()
    print(f'Same network: {parameters:,} parameters, losses differ by {abs(theirs - ours).max():g}')


def _main(arguments: list[str]) -> None:
    del arguments
    values = flags.FLAGS
    warnings.filterwarnings('ignore', 'Full backward hook is firing')
    networks = variants.MODELS[values.model]
    facts = machine()
    torch.set_num_threads(facts['cores'])
    data = steps.make_data(networks, values.batch_size // 2)
    torch_data = to_torch(*data)
    print(
        f'{facts["cores"]} cores of {facts["processor"]}; TensorFlow {facts["tensorflow"]}, '
        f'PyTorch {torch.__version__}, Opacus {opacus.__version__}; {values.model}, '
        f'batch {values.batch_size}, {values.rounds} rounds'
    )
    check_same(networks, data, torch_data)
    runs = {}
    for variant in _OURS:
        variant = dataclasses.replace(variant, batch_size=values.batch_size)
        runs[variant.name] = steps.build_run(networks, variant, data)
    for kind in ('plain', 'hooks', 'ghost'):
        name = f'{"PyTorch" if kind == "plain" else "Opacus"}: {kind}'
        runs[name] = build_run(kind, Discriminator(networks), torch_data)
    _print(timing.measure_times(runs, values.rounds))


def _print(seconds) -> None:
    columns = '{:<22} {:>8} {:>22} {:>22}'
    print(columns.format('step', 'ms', '× our DP-SGD', '× our error feedback'))
    for name, of_rounds in seconds.items():
        spreads = [
            timing.spread_of_ratios(of_rounds, seconds[variant.name]) for variant in _OURS[1:]
        ]
        shown = [f'{s.median:.2f} ({s.low:.2f}–{s.high:.2f})' for s in spreads]
        print(columns.format(name, f'{1e3 * statistics.median(of_rounds):.1f}', *shown))


if __name__ == '__main__':
    flags.DEFINE_enum('model', 'mnist', list(variants.MODELS), 'The networks.')
    flags.DEFINE_integer('batch_size', 512, 'Half are records, half generated images.', 2)
    flags.DEFINE_integer('rounds', 7, 'Rounds to measure.', 1)
    app.run(_main)
