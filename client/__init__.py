"""What runs next to private data: data, model, private training, update."""

import logging

# ExecuTorch brings torchao, which transformers imports wherever it finds it; on a machine without a
# GPU that says at every start which of its kernels are of no use there.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
