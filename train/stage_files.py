"""The files of a train stage."""

#: State dicts of the dense network, and of the pruned one in the dense network's shapes.
DENSE, PRUNED = "dense.safetensors", "pruned.safetensors"
#: Which weights are left, bool by parameter name.
MASKS = "masks.safetensors"
#: What was pruned and how accurate it is, and every epoch on the way there.
PRUNING, HISTORY = "pruning.json", "history.jsonl"
#: Preprocessed images and their classes: of the test set, and of those that were not trained on.
SAMPLES, HELD_OUT = "samples.npz", "held_out.npz"
#: What an unfinished stage goes on from.
CHECKPOINT = "checkpoint.safetensors"
