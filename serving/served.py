"""A predictor with everything that its requests need, made once when it is opened to serve."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np

from artifacts.inputs import ImageInput
from artifacts.predictor import Predictor
from serving.batcher import Batcher, Limits
from serving.endpoints import Endpoint, Infer, Predict, PredictImage
from serving.metrics import Metrics, ModelObserver
from serving.oip import InferenceProtocol
from serving.oip_documents import Statistics
from serving.openapi import openapi_document
from serving.pace import Pace
from serving.page import Page
from serving.settings import Settings
from serving.wire import RequestDecoder, response_encoder

# A batch that takes no longer runs on the event loop's own thread.
_ON_LOOP_S = 0.002
# A batch costs more than the model: handing it over, and answering with caches that a large network
# has filled. So it may always take this long, or as long as so many rows one by one.
_SHORT_S = 0.001
_TOGETHER = 5
# Without a setting, what waits is at most so many batches of the smallest good size, and never less
# than this, or than some batches of the size there is.
_QUEUE_BATCHES = 20
_QUEUE_S = 0.03
_LEAST_BATCHES = 3


@dataclass
class ServedModel:
    """endpoints: by path. description, openapi: documents as JSON. pending: its requests."""

    predictor: Predictor
    settings: Settings
    observer: ModelObserver
    batcher: Batcher
    limits: Limits
    protocol: InferenceProtocol
    endpoints: dict[str, Endpoint]
    description: bytes
    openapi: bytes
    metrics: Metrics
    page: Page
    pending: int = 0

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return self.predictor.manifest.reference

    def statistics(self) -> Statistics:
        """What all workers have done with it since the service started."""
        counts = self.metrics.of_all_workers().models[self.reference]
        seconds = {
            "success_ns": counts.succeeded_seconds,
            "fail_ns": counts.failed_seconds,
            "queue_ns": counts.queue_seconds.total,
            "compute_ns": counts.inference_seconds.total,
        }
        batches = sum(counts.batch_rows.counts)
        return Statistics(
            last_inference_ms=counts.last_inference_ms,
            inference_count=int(counts.batch_rows.total),
            execution_count=batches,
            success_count=counts.succeeded,
            fail_count=counts.failed,
            queue_count=sum(counts.queue_seconds.counts),
            compute_count=batches,
            **{name: int(value * 1e9) for name, value in seconds.items()},
        )


def model_thread() -> ThreadPoolExecutor:
    """One thread, for a model that takes too long for the event loop's."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")


@dataclass(frozen=True)
class Prepared:
    """A predictor that is warm, its pace measured: ready for a worker to take up."""

    predictor: Predictor
    pace: Pace
    thread: ThreadPoolExecutor = field(default_factory=model_thread)


def prepare(predictor: Predictor, thread: ThreadPoolExecutor) -> Prepared:
    """Warm it up and measure its pace. Takes a second; may run beside a loop that serves."""
    raw = predictor.golden.raw
    pace = Pace.measure(predictor.run, raw, predictor.manifest.max_batch_size)
    return Prepared(predictor, pace, thread)


def serve_model(prepared: Prepared, settings: Settings, metrics: Metrics) -> ServedModel:
    """The predictor with its queue, endpoints and documents; on the event loop's thread."""
    predictor, pace = prepared.predictor, prepared.pace
    manifest = predictor.manifest
    largest = manifest.max_batch_size
    best_rows = pace.best_batch_rows(_SHORT_S, _TOGETHER)
    batch_rows = min(settings.max_batch_size or best_rows, largest)
    few = min(pace.efficient_rows(), batch_rows)
    wait_s = max(
        _QUEUE_S,
        _QUEUE_BATCHES * pace.seconds(few, few),
        _LEAST_BATCHES * pace.seconds(batch_rows, batch_rows),
    )
    limits = Limits(
        batch_rows=batch_rows,
        max_queue_rows=settings.max_queue_rows,
        max_queue_bytes=settings.max_queue_bytes,
        max_wait_s=settings.max_queue_ms / 1000 or wait_s,
        max_delay_s=settings.max_delay_ms / 1000,
    )
    observer = metrics.model(manifest.reference)
    batcher = Batcher(
        predictor.run,
        limits,
        pace=pace,
        # A device works while the loop goes on.
        on_loop_s=_ON_LOOP_S if predictor.device == "cpu" else 0.0,
        observer=observer,
        thread=prepared.thread,
    )
    max_rows = _max_rows(predictor, settings)
    protocol = InferenceProtocol(manifest, max_rows=max_rows)
    encode = response_encoder(manifest)
    decoder = RequestDecoder(manifest, max_rows=max_rows, max_pixels=settings.max_pixels)
    predict = Predict(manifest, decoder, encode, settings.max_body_bytes)
    infer = Infer(manifest, protocol, settings.max_body_bytes)
    model_path = f"/v2/models/{manifest.name}"
    endpoints: dict[str, Endpoint] = {
        "/predict": predict,
        f"{model_path}/infer": infer,
        f"{model_path}/versions/{manifest.version}/infer": infer,
    }
    if isinstance(manifest.input, ImageInput):
        endpoints["/predict/image"] = PredictImage(
            manifest,
            encode,
            max_rows=max_rows,
            max_body_bytes=settings.max_body_bytes,
            max_pixels=settings.max_pixels,
        )
    about = {**manifest.public(), "backend": predictor.backend, "device": predictor.device}
    return ServedModel(
        predictor=predictor,
        settings=settings,
        observer=observer,
        batcher=batcher,
        limits=limits,
        protocol=protocol,
        endpoints=endpoints,
        description=msgspec.json.encode(about),
        openapi=msgspec.json.encode(openapi_document(manifest, predictor.golden)),
        metrics=metrics,
        page=Page(predictor, settings, max_rows=max_rows),
    )


def _max_rows(predictor: Predictor, settings: Settings) -> int:
    """Of one request. A small file may hold many pictures: as arrays they fill a quarter of the
    queue's bytes at most."""
    item_bytes = 1 if isinstance(predictor.manifest.input, ImageInput) else 8
    row_bytes = int(np.prod(predictor.manifest.input.shape)) * item_bytes
    return min(settings.max_rows, max(1, settings.max_queue_bytes // 4 // row_bytes))
