"""From a slot to a model: what of it lies on the disk, checked on each read.

Rule: nothing is loaded but bytes that were hashed on this read, under a manifest that was. Each method raises
``RejectedError`` for what must not run, or cannot.
"""

import logging
from collections.abc import Callable

from edge_agent import fetch
from edge_agent.batching import prove_batches
from edge_agent.blobs import BlobStore
from edge_agent.inference import ServedModel
from edge_agent.runtime import Runtime, load_artifact
from edge_agent.selftest import SelfTestJob
from edge_agent.update_state import Slot
from edgeloop.artifact import golden_arrays
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2

logger = logging.getLogger(__name__)


class ModelLoader:
    """Of one workload. Owned by the agent's thread."""

    def __init__(
        self,
        blobs: BlobStore,
        *,
        # Raises RejectedError for an artifact that is larger than this workload may have.
        check_limit: Callable[[artifact_pb2.Manifest], None],
        num_threads: int,
        self_test_timeout_s: float,
        # How many samples may share a run, where a model allows it.
        max_batch_size: int,
    ) -> None:
        self._blobs = blobs
        self._check_limit = check_limit
        self._num_threads = num_threads
        self._self_test_timeout_s = self_test_timeout_s
        self._max_batch_size = max_batch_size

    def verify(self, slot: Slot) -> None:
        """All of it is here, as it was signed, and fits."""
        manifest = self._blobs.read_manifest(slot.manifest_digest)
        fetch.check_fits(slot, manifest)
        self._check_limit(manifest)
        self._blobs.check_artifact(manifest)

    def self_test(self, slot: Slot) -> SelfTestJob:
        """What its self-test is to do."""
        return SelfTestJob(
            artifact_path=self._blobs.artifact_path(slot.digest),
            manifest_path=self._blobs.manifest_path(slot.manifest_digest),
            manifest_digest=slot.manifest_digest,
            num_threads=self._num_threads,
            timeout_s=self._self_test_timeout_s,
        )

    def load(self, slot: Slot) -> ServedModel:
        """Ready to be swapped in."""
        manifest = self._blobs.read_manifest(slot.manifest_digest)
        fetch.check_fits(slot, manifest)
        data = self._blobs.read_artifact(manifest)
        runtime = load_artifact(data, manifest, num_threads=self._num_threads)
        return ServedModel(
            runtime=runtime,
            digest=slot.digest,
            generation=slot.generation,
            workload=slot.workload,
            metric=manifest.metric,
            max_batch_size=self._proven_batch(runtime, manifest),
        )

    def _proven_batch(self, runtime: Runtime, manifest: artifact_pb2.Manifest) -> int:
        """How many samples may share a run of this model; 1 where batching is off, or not for this one."""
        if self._max_batch_size == 1:
            return 1
        inputs, _ = golden_arrays(manifest)
        try:
            prove_batches(
                runtime,
                inputs,
                max_batch_size=self._max_batch_size,
                absolute_tolerance=manifest.golden.absolute_tolerance,
            )
        except RejectedError as error:
            logger.warning(
                "requests to this model are not batched digest=%s code=%s reason=%s",
                manifest.digest[:12],
                error.code,
                error,
            )
            return 1
        return self._max_batch_size


def served_as(slot: Slot, serving: ServedModel) -> ServedModel:
    """The same bytes under another generation: nothing to load."""
    return ServedModel(
        runtime=serving.runtime,
        digest=slot.digest,
        generation=slot.generation,
        workload=slot.workload,
        metric=serving.metric,
        max_batch_size=serving.max_batch_size,
    )
