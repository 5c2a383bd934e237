"""Write recorded inputs for agents to replay: python inputs.py WORKLOAD_FILE OUT.npz"""

import sys
from pathlib import Path

import numpy as np

from cloud.documents import load_documents
from cloud.resources import WorkloadDocument
from cloud.training.datasets import load_dataset

NUM_SAMPLES = 64

(document,) = load_documents(Path(sys.argv[1]))
assert isinstance(document, WorkloadDocument)
inputs = load_dataset(document.to_domain()).validation.inputs[:NUM_SAMPLES]
target = Path(sys.argv[2])
temporary = target.with_name(f".{target.name}")
np.savez(temporary, inputs=inputs)
temporary.replace(target)
