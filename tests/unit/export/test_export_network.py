from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from export.config import ExportConfig, PurifyConfig
from export.export_network import Samples, export_network
from export.inference import fold_for_inference
from export.onnx_export import OnnxNetwork, export_onnx, read_onnx
from export.shrink import Shrunk, rounded, shrink
from export.stage import read_samples, run_export
from export.unused_paths import remove_unused_paths
from export.verify import SHRUNK_VS_ONNX, compare, difference, random_inputs, verify
from structadmm.errors import InvariantError, UserError
from structadmm.graph import Captured, GraphModule, capture
from structadmm.graph.save import load_network
from structadmm.progress import SilentReporter
from tests.architectures import INPUT_SHAPE, build, captured, in_float64
from tests.random_networks import NETWORK_INPUT, random_network, with_structured_zeros
from train.data.dataset import Dataset
from tvm_build.import_onnx import load_onnx


def pruned(model: nn.Module, shape: tuple[int, ...], fraction: float) -> nn.Module:
    graph, state = capture(model, (torch.zeros(shape),))
    zeros = with_structured_zeros(graph, state, fraction, seed=2)
    model.load_state_dict({name: zeros[name] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("name", ["shufflenet_v2", "densenet", "unet"])
def test_an_exported_network_is_the_given_one(name: str, tmp_path: Path) -> None:
    model = pruned(build(name), INPUT_SHAPE, 0.5)
    record = export_network(model, torch.zeros(INPUT_SHAPE), tmp_path, config=ExportConfig(batch=2))
    inputs = torch.randn(5, *INPUT_SHAPE[1:], generator=torch.Generator().manual_seed(9))
    expected = model.eval()(inputs).detach()
    (arrived,) = OnnxNetwork(tmp_path / "pruned.onnx")(inputs)
    assert difference(expected, arrived) < SHRUNK_VS_ONNX
    assert difference(expected, load_network(tmp_path / "shrunk")(inputs).detach()) < SHRUNK_VS_ONNX
    assert record["conv_params"]["ratio"] > 1.0
    assert json.loads((tmp_path / "export.json").read_text()) == json.loads(json.dumps(record))
    file = onnx.load(tmp_path / "pruned.onnx")
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    modules = dict(model.named_modules())
    for node in file.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert node.name in modules
            assert node.input[1] == f"{node.name}.weight"
    assert {"structadmm.macs", "version.torch"} <= {entry.key for entry in file.metadata_props}


def test_nodes_without_weights_are_named_after_the_layer_that_calls_them(one_column_zero: Path) -> None:
    names = {node.name: node.op_type for node in onnx.load(one_column_zero / "pruned.onnx").graph.node}
    assert names["1/Add"] == "Add" and names["1.relu/Relu"] == names["1.relu/Relu_2"] == "Relu"
    assert names["1.conv1"] == "Conv"


def test_a_random_network_survives_onnx(tmp_path: Path) -> None:
    model = pruned(random_network(40), NETWORK_INPUT, 0.6)
    record = export_network(model, torch.zeros(NETWORK_INPUT), tmp_path)
    assert record["checks"]["shrunk_vs_onnx"] < SHRUNK_VS_ONNX


@pytest.fixture(scope="module")
def one_column_zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one_column_zero")
    model = build("resnet18")
    with torch.no_grad():
        model[1].conv1.weight[:, 2, 0, 1] = 0
    export_network(model, torch.zeros(INPUT_SHAPE), path)
    return path


def test_batch_norm_is_folded_and_zero_columns_stay_zero(one_column_zero: Path) -> None:
    file = onnx.load(one_column_zero / "pruned.onnx")
    assert "BatchNormalization" not in {node.op_type for node in file.graph.node}
    weight = next(onnx.numpy_helper.to_array(t) for t in file.graph.initializer if t.name == "1.conv1.weight")
    assert not weight[:, 2, 0, 1].any() and weight[:, 2, 0, 0].all()


def test_a_weight_of_mostly_zeros_is_stored_sparse_in_a_valid_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()).eval()
    with torch.no_grad():
        model[2].weight[:, :, 1:] = 0  # a third of the columns is left, of which
        model[2].weight[:, 4:, 0, 1:] = 0  # a third more goes
    dense = export_onnx(*capture(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "sparse.onnx")
    assert "2.weight" not in {tensor.name for tensor in dense.graph.initializer}
    file = read_onnx(tmp_path / "sparse.onnx")  # with the full check
    (constant,) = (node for node in file.graph.node if node.op_type == "Constant")
    assert constant.output[0] == "2.weight" and len(constant.attribute[0].sparse_tensor.indices.dims) == 1
    assert {entry.key: entry.value for entry in file.metadata_props}["structadmm.sparse_weights"] == "2.weight"
    inputs = torch.randn(2, 3, 8, 8)
    (arrived,) = OnnxNetwork(tmp_path / "sparse.onnx")(inputs)
    assert difference(model(inputs).detach(), arrived) < SHRUNK_VS_ONNX
    written_out = load_onnx(tmp_path / "sparse.onnx")
    (weight,) = (tensor for tensor in written_out.graph.initializer if tensor.name == "2.weight")
    assert np.array_equal(onnx.numpy_helper.to_array(weight), model[2].weight.detach().numpy())
    constant.attribute[0].sparse_tensor.dims[0] = 1 << 40
    (tmp_path / "huge.onnx").write_bytes(file.SerializeToString())
    for read in (read_onnx, load_onnx):
        with pytest.raises(UserError, match=r"huge\.onnx.*claims") as error:
            read(tmp_path / "huge.onnx")
        assert "\n" not in str(error.value)


def test_zero_columns_are_left_out_of_the_file_and_written_out_by_whoever_reads_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten()).eval()
    with torch.no_grad():
        model[2].weight[:, ::2, 1:] = 0
        model[2].weight[:, :, 0, 0] = 0
    written = export_onnx(*capture(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "columns.onnx")
    assert {entry.key: entry.value for entry in written.metadata_props}["structadmm.column_weights"] == "2.weight"
    weight = model[2].weight.detach().numpy()
    kept = int(weight.any(axis=0).sum())
    file = read_onnx(tmp_path / "columns.onnx")  # with the full check
    sizes = {tensor.name: list(tensor.dims) for tensor in file.graph.initializer}
    assert sizes["2.weight/columns"] == [24, kept + 1] and "2.weight" not in sizes
    inputs = torch.randn(2, 3, 8, 8)
    (arrived,) = OnnxNetwork(tmp_path / "columns.onnx")(inputs)
    assert difference(model(inputs).detach(), arrived) < SHRUNK_VS_ONNX
    read = load_onnx(tmp_path / "columns.onnx")
    assert [node.op_type for node in read.graph.node] == ["Conv", "Relu", "Conv", "Reshape"]  # the last flattens
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in read.graph.initializer}
    assert np.array_equal(found["2.weight"], weight)
    assert not [name for name in found if "2.weight/" in name]
    places = next(tensor for tensor in file.graph.initializer if tensor.name == "2.weight/places")
    moved = onnx.numpy_helper.to_array(places).copy()
    moved[0] = kept + 1  # one beyond the last
    places.CopyFrom(onnx.numpy_helper.from_array(moved, places.name))
    (tmp_path / "damaged.onnx").write_bytes(file.SerializeToString())
    for reader in (load_onnx, OnnxNetwork):
        with pytest.raises(UserError) as error:
            network = reader(tmp_path / "damaged.onnx")
            assert isinstance(network, OnnxNetwork)
            network(inputs)  # ONNX Runtime leaves what it cannot compute until it runs
        assert "\n" not in str(error.value)


def test_weights_in_files_beside_the_network_are_read_and_damage_is_told_in_one_line(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten()).eval()
    file = export_onnx(*capture(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "whole.onnx")
    onnx.save(file, tmp_path / "parts.onnx", save_as_external_data=True, location="parts.bin", size_threshold=100)
    inputs = torch.randn(2, 3, 8, 8)
    whole, parts = (OnnxNetwork(tmp_path / f"{name}.onnx")(inputs)[0] for name in ("whole", "parts"))
    assert torch.equal(whole, parts)
    data = (tmp_path / "parts.bin").read_bytes()
    (tmp_path / "parts.bin").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"parts\.bin beside it cannot be read") as error:
        read_onnx(tmp_path / "parts.onnx")
    assert "\n" not in str(error.value)
    (tmp_path / "parts.bin").unlink()
    with pytest.raises(UserError, match=r"parts\.bin beside it cannot be read"):
        read_onnx(tmp_path / "parts.onnx")


def test_folding_is_exact_in_float64() -> None:
    graph, state = in_float64(captured("unet"))
    folded, tensors = fold_for_inference(graph, state)
    assert not [node for node in folded.nodes if "batch_norm" in node.op]
    inputs = torch.randn(2, *INPUT_SHAPE[1:], dtype=torch.float64)
    with torch.no_grad():
        expected, arrived = GraphModule(graph, state).eval()(inputs), GraphModule(folded, tensors).eval()(inputs)
    # The same sums with two multiplications exchanged.
    assert difference(expected, arrived) < 1e-13


def test_a_changed_weight_is_found_and_its_first_node_named(tmp_path: Path) -> None:
    graph, state = captured("resnet18")
    state = with_structured_zeros(graph, state, 0.5, seed=2)
    smaller = shrink(remove_unused_paths(graph, state))
    masked, batches = GraphModule(graph, state).eval(), [(torch.randn(INPUT_SHAPE),)]
    smaller.state["2.conv1.weight"] += 0.1
    with pytest.raises(InvariantError, match=r"first at aten\.conv2d\.default of 2\.conv1 "):
        verify(masked, GraphModule(smaller.graph, smaller.state), None, batches, smaller.keeps)


def test_a_wrong_onnx_file_is_found_and_its_first_layer_named(one_column_zero: Path) -> None:
    file = onnx.load(one_column_zero / "pruned.onnx")
    for tensor in file.graph.initializer:
        if tensor.name == "2.conv2.weight":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name)
            )
    shrunk = load_network(one_column_zero / "shrunk")
    with pytest.raises(InvariantError, match=r"Conv of 2\.conv2"):
        verify(shrunk, shrunk, file, [(torch.randn(INPUT_SHAPE),)])


def test_differences_far_below_a_wrong_answer_are_found_in_every_comparison(one_column_zero: Path) -> None:
    graph, state = captured("resnet18")
    state = with_structured_zeros(graph, state, 0.5, seed=2)
    whole = shrink(remove_unused_paths(*in_float64(Captured(graph, state))))
    smaller = rounded(whole, torch.float32)
    masked, batches = GraphModule(graph, state).eval(), [(torch.randn(INPUT_SHAPE),)]

    def scaled(network: Shrunk, factor: float) -> GraphModule:
        tensors = {**network.state, "2.conv1.weight": network.state["2.conv1.weight"] * factor}
        return GraphModule(network.graph, tensors).eval()

    verify(masked, scaled(smaller, 1.0), None, batches, smaller.keeps, scaled(whole, 1.0))
    with pytest.raises(InvariantError, match=r"masked and shrunk network differ by \S+, first"):
        verify(masked, scaled(smaller, 1.001), None, batches, smaller.keeps, scaled(whole, 1.0))
    with pytest.raises(InvariantError, match=r"masked and shrunk network differ by \S+ in float64"):
        verify(masked, scaled(smaller, 1.0), None, batches, smaller.keeps, scaled(whole, 1 + 1e-6))
    file = onnx.load(one_column_zero / "pruned.onnx")
    for tensor in file.graph.initializer:
        if tensor.name == "2.conv2.weight":
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    shrunk = load_network(one_column_zero / "shrunk")
    with pytest.raises(InvariantError, match="shrunk network and ONNX Runtime differ"):
        verify(shrunk, shrunk, file, batches)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_agrees_with_nothing(number: float) -> None:
    one, bad = torch.ones(2), torch.tensor([1.0, number])
    for a, b in ((one, bad), (bad, one), (bad, bad)):
        assert not compare(a, b, 1e9).passed
    assert not compare(torch.ones(2), torch.ones(2, 1), 1e9).passed


def test_proofs_are_made_with_small_and_with_large_inputs() -> None:
    graph, _ = captured("resnet18")
    sizes = [float(image.std()) for (image,) in random_inputs(graph)]
    assert sizes == pytest.approx([0.1, 1.0, 10.0], rel=0.1)


def images() -> Dataset:
    """Forty test images of classes that nothing has to do with."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, *INPUT_SHAPE[1:]), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % 5
    return Dataset("noise", pixels, labels, pixels, labels, tuple("abcde"), (0.5,) * 3, (0.25,) * 3)


def write_train_dir(path: Path) -> nn.Module:
    path.mkdir()
    dense = build("resnet18")
    safetensors.torch.save_file(dense.state_dict(), path / "dense.safetensors")
    model = pruned(build("resnet18"), INPUT_SHAPE, 0.5)
    safetensors.torch.save_file(model.state_dict(), path / "pruned.safetensors")
    description = {
        "schema": 1,
        "model": {"entry": "tests.architectures:resnet18", "kwargs": {}},
        "input_shape": list(INPUT_SHAPE),
        "accuracy": {"dense": 91.0, "pruned": 90.0},
    }
    (path / "pruning.json").write_text(json.dumps(description))
    inputs = np.random.default_rng(0).normal(size=(3, *INPUT_SHAPE[1:])).astype(np.float32)
    np.savez(path / "samples.npz", inputs=inputs, labels=np.array([0, 1, 2]))
    return model


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("line") / "train"
    write_train_dir(path)
    return path


def test_the_stage_writes_what_the_later_stages_read(tmp_path: Path) -> None:
    model = write_train_dir(tmp_path / "train")
    run_export(ExportConfig(), tmp_path / "train", tmp_path / "export", SilentReporter())
    names = {"pruned.onnx", "baseline.onnx", "shrunk.safetensors", "shrunk.json", "export.json", "samples.npz"}
    assert {path.name for path in (tmp_path / "export").iterdir()} == names
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["schema"] == 1 and record["accuracy"] == {"dense": 91.0, "pruned": 90.0}
    for figure in ("conv_params", "params", "macs"):
        assert record[figure]["dense"] / record[figure]["pruned"] == record[figure]["ratio"] > 1
    inputs = torch.from_numpy(np.load(tmp_path / "train" / "samples.npz")["inputs"])
    right = (model.eval()(inputs).argmax(1) == torch.arange(3)).double().mean().item()
    assert record["sample_accuracy"]["pruned"] == pytest.approx(100 * right)
    (baseline,) = OnnxNetwork(tmp_path / "export" / "baseline.onnx")(inputs)
    assert difference(build("resnet18")(inputs).detach(), baseline) < SHRUNK_VS_ONNX


@pytest.mark.parametrize("name", ["inputs", "images"])
def test_samples_are_read_under_either_name(tmp_path: Path, name: str) -> None:
    given = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    np.savez(tmp_path / "samples.npz", **{name: given, "labels": np.array([1, 0])})
    samples = read_samples(tmp_path / "samples.npz")
    assert torch.equal(samples.inputs, torch.from_numpy(given.astype(np.float32)))
    assert samples.labels is not None and samples.labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["pruning.json", "pruned.safetensors", "dense.safetensors", "samples.npz"])
@pytest.mark.parametrize("damage", ["absent", "truncated", "garbage"])
def test_a_damaged_training_directory_is_refused_in_one_line(
    train_dir: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(train_dir, tmp_path / "train")
    path = tmp_path / "train" / name
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\x00garbage" * 100)
    with pytest.raises(UserError, match=name) as error:
        run_export(ExportConfig(), tmp_path / "train", tmp_path / "export", SilentReporter())
    assert "\n" not in str(error.value)


def test_a_purified_network_is_tested_again_on_the_test_images(train_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(train_dir, tmp_path / "train")
    pruning = json.loads((tmp_path / "train" / "pruning.json").read_text())
    pruning["data"] = {"config": {"name": "tests.unit.export.test_export_network:images"}}
    pruning["accuracy"]["test_images"] = 40
    (tmp_path / "train" / "pruning.json").write_text(json.dumps(pruning))
    config = ExportConfig(purify=PurifyConfig(enabled=True, eta=(0.0,), sigma=(0.9,), max_accuracy_drop=100.0))
    with pytest.raises(UserError, match=r"train\.data\.held_out"):
        run_export(config, tmp_path / "train", tmp_path / "export", SilentReporter())
    shutil.copyfile(tmp_path / "train" / "samples.npz", tmp_path / "train" / "held_out.npz")
    run_export(config, tmp_path / "train", tmp_path / "export", SilentReporter())
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["purified"]["emptied"]
    data = images()
    found = load_network(tmp_path / "export" / "shrunk")(data.normalised(data.test_images)).argmax(dim=1)
    correct = int((found == data.test_labels).sum())
    assert record["purified"]["test"] == {"correct": correct, "images": 40}
    assert record["accuracy"] == {"dense": 91.0, "before_purification": 90.0, "pruned": 2.5 * correct}
    (entry,) = (
        entry.value
        for entry in onnx.load(tmp_path / "export" / "pruned.onnx").metadata_props
        if entry.key == "structadmm.accuracy.pruned"
    )
    assert float(entry) == 2.5 * correct


def test_purification_is_refused_without_labels(tmp_path: Path) -> None:
    config = ExportConfig(purify=PurifyConfig(enabled=True))
    with pytest.raises(UserError, match=r"labelled images"):
        export_network(build("resnet18"), torch.zeros(INPUT_SHAPE), tmp_path, config=config)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    model = build("resnet18")
    with torch.no_grad():
        model[1].conv1.weight[0, 0, 0, 0] = float("nan")
    # Tracing compares the traced network with the model, and NaN equals nothing, so the weights are looked at first.
    with pytest.raises(UserError, match=r"1\.conv1\.weight"):
        export_network(model, torch.zeros(INPUT_SHAPE), tmp_path)


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    samples = Samples(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match=r"\[3, 8, 8\]"):
        export_network(build("resnet18"), torch.zeros(INPUT_SHAPE), tmp_path, samples=samples)


def test_damaged_onnx_files_are_refused_in_one_line(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", 1, [1, 2])],
        [value("y", 1, [1, 2])],
        [tensor],
    )
    data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]).SerializeToString()
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    read_onnx(path)
    external = onnx.load_model_from_string(data)
    external.graph.initializer[0].ClearField("raw_data")
    external.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    external.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")
    for damaged in (data[: len(data) // 2], b"not onnx", b"", external.SerializeToString()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.onnx") as error:
            read_onnx(path)
        assert "\n" not in str(error.value)
