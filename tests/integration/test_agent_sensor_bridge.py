"""Topics of a real Mosquitto to a real model and back, in the test's process and in an agent's."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_harness import NUM_INPUTS, AgentProcess, Cloud, golden_inputs, make_model, ship
from machine import wait_until
from numpy.typing import NDArray
from sensor_harness import serve, started_engine
from tls_authority import Authority

from edge_agent.bridge_tls import BridgeTls
from edge_agent.config import Endpoint
from edge_agent.runtime import load_onnx
from edge_agent.sensors.asker import Asker
from edge_agent.sensors.bridge import Bridge
from edge_agent.sensors.counts import ANSWERED, DROPPED, FAILED, SourceCounts
from edge_agent.source_settings import BridgeSettings
from edge_agent.trial import TrialMeter
from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession

pytestmark = pytest.mark.mosquitto

MODEL = make_model(1, num_hidden=32)
SAMPLES = golden_inputs(8)
Answers = queue.Queue[tuple[str, dict[str, Any]]]


def settings(port: int, **others: object) -> BridgeSettings:
    values: dict[str, Any] = {
        "name": "bridge-1",
        "broker": Endpoint(host="127.0.0.1", port=port),
        "input_topic": "in/+",
        "output_topic": "out/{topic}",
        "error_topic": "errors",
        **others,
    }
    return BridgeSettings(**values)


class Sensor:
    """Publishes, and hears whatever comes back."""

    def __init__(self, port: int, **how: Any) -> None:
        self.answers: Answers = queue.Queue()
        self.session = MqttSession("127.0.0.1", port, "sensor", backoff=Backoff(0.05, 0.2), **how)
        self.session.subscribe("out/#", self._hear)
        self.session.subscribe("errors", self._hear)
        self.session.start()
        assert self.session.wait_connected(60)

    def _hear(self, topic: str, payload: bytes) -> None:
        self.answers.put((topic, json.loads(payload)))

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.session.publish(topic, payload, retain=retain).wait(60)

    def hear(self) -> tuple[str, dict[str, Any]]:
        return self.answers.get(timeout=60)


@pytest.fixture
def sensor(mosquitto) -> Iterator[Sensor]:
    sensor = Sensor(mosquitto.port)
    yield sensor
    sensor.session.close()


class Gate:
    """A model that can be held up; otherwise the real one."""

    def __init__(self) -> None:
        self._runtime = load_onnx(MODEL)
        self.open = threading.Event()
        self.begun = threading.Event()
        self.input_name, self.output_name = self._runtime.input_name, self._runtime.output_name
        self.sample_shape, self.output_shape = self._runtime.sample_shape, self._runtime.output_shape

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        if threading.current_thread().name == "inference":
            self.begun.set()
            assert self.open.wait(60)
        return self._runtime.run(inputs)


def wait_subscribed(session: MqttSession) -> None:
    """A broker takes what one client sends in its order: acknowledged is what came before, too."""
    assert session.wait_connected(60)
    session.publish("barrier", b"").wait(60)


Started = Callable[..., tuple[Bridge, SourceCounts]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts a bridge with an engine, and closes both."""
    with ExitStack() as stack:

        def start(  # type: ignore[no-untyped-def]
            bridge_settings: BridgeSettings, *, runtime: Gate | None = None, timeout_s: float = 60
        ):
            engine = started_engine(MODEL, TrialMeter(window_s=3600))
            stack.callback(engine.close)
            if runtime is not None:
                served = serve(MODEL)
                object.__setattr__(served, "runtime", runtime)
                engine.swap(served)
                stack.callback(runtime.open.set)
            counts = SourceCounts(["bridge-1"])
            asker = Asker(engine, timeout_s=timeout_s, max_bytes=4096)
            bridge = Bridge(bridge_settings, asker, counts, client_id="gw", backoff=Backoff(0.05, 0.2))
            stack.callback(bridge.close)
            bridge.start()
            wait_subscribed(bridge._session)
            return bridge, counts

        yield start


def test_json_and_raw_samples_are_answered_on_the_topic_of_each_sensor(mosquitto, sensor, started) -> None:
    expected = load_onnx(MODEL).run(SAMPLES)
    started(settings(mosquitto.port))
    sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": 17}).encode())
    topic, said = sensor.hear()
    assert (topic, said["id"], said["source"]) == ("out/in/a", 17, "in/a")
    np.testing.assert_allclose(said["outputs"], expected[0], rtol=1e-5)
    assert said["class"] == expected[0].argmax()
    assert said["model"] == serve(MODEL).digest


def test_what_is_wrong_with_a_sample_comes_on_the_error_topic(mosquitto, sensor, started) -> None:
    _, counts = started(settings(mosquitto.port, format="raw", output_topic="out/all"))
    sensor.send("in/a", b"123")
    sensor.send("in/b", bytes(5000))
    sensor.send("in/c", SAMPLES[1].astype("<f4").tobytes())
    first, second, third = (sensor.hear() for _ in range(3))
    assert (first[0], first[1]["code"], first[1]["source"]) == ("errors", "input-size", "in/a")
    assert str(4 * NUM_INPUTS) in first[1]["error"]
    assert second[1]["code"] == "request-too-large"
    assert (third[0], third[1]["source"]) == ("out/all", "in/c")
    wait_until(lambda: counts.get("bridge-1", ANSWERED) == 1, what="the count")
    assert counts.get("bridge-1", FAILED) == 2


def test_a_sample_that_waits_for_too_long_is_told_so_by_its_id(mosquitto, sensor, started) -> None:
    started(settings(mosquitto.port), runtime=Gate(), timeout_s=0.2)
    sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": 5}).encode())
    topic, said = sensor.hear()
    assert (topic, said["id"], said["code"]) == ("errors", 5, "request-deadline")


def test_the_oldest_of_too_many_samples_go_and_are_counted(mosquitto, sensor, started, caplog) -> None:
    gate = Gate()
    _, counts = started(settings(mosquitto.port, max_pending=5), runtime=gate)
    for number in range(20):
        sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": number}).encode())
        assert gate.begun.wait(60)  # the first is at the model; of the others five wait
    wait_until(lambda: counts.get("bridge-1", DROPPED) == 14, what="drops")
    gate.open.set()
    ids = [sensor.hear()[1]["id"] for _ in range(6)]
    assert ids == [0, 15, 16, 17, 18, 19]
    wait_until(lambda: counts.get("bridge-1", ANSWERED) == 6, what="the counts to add up")
    assert sum("faster" in record.message for record in caplog.records) == 1


def test_an_answer_outlives_the_broker(mosquitto, sensor, started, caplog) -> None:
    gate = Gate()
    bridge, counts = started(settings(mosquitto.port), runtime=gate)
    sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": "kept"}).encode())
    assert gate.begun.wait(60)
    mosquitto.kill()
    wait_until(lambda: not sensor.session.connected, what="the sensor to notice")
    gate.open.set()

    def warnings() -> list[str]:
        records = [record for record in list(caplog.records) if record.levelname == "WARNING"]
        return [record.getMessage() for record in records if " gw:" in record.getMessage()]

    wait_until(warnings, what="the bridge to notice")
    time.sleep(0.5)
    assert counts.get("bridge-1", ANSWERED) == 0
    assert len(warnings()) == 1
    assert sensor.answers.empty()
    mosquitto.start()
    # Whoever comes back first: a sensor that was away when the answer went out asks again.
    wait_until(lambda: counts.get("bridge-1", ANSWERED) == 1, what="the answer to be acknowledged")
    wait_subscribed(sensor.session)
    wait_subscribed(bridge._session)
    sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": "fresh"}).encode())
    heard = [sensor.hear()[1]["id"]]
    if heard == ["kept"]:
        heard.append(sensor.hear()[1]["id"])
    assert heard[-1] == "fresh"


def test_an_answer_that_would_be_the_next_input_is_never_sent(mosquitto, sensor, started) -> None:
    # Not to be seen in the settings: only a sensor of this very name makes it a loop.
    loop = settings(mosquitto.port, input_topic="+/b/#", output_topic="a/{topic}")
    _, counts = started(loop)
    sensor.send("b/b/c", json.dumps(SAMPLES[0].tolist()).encode())
    wait_until(lambda: counts.get("bridge-1", FAILED) == 1, what="the refusal")
    time.sleep(0.3)
    assert [counts.get("bridge-1", outcome) for outcome in (ANSWERED, FAILED, DROPPED)] == [0, 1, 0]


def test_a_bridge_reaches_a_broker_over_tls_with_a_certificate_and_a_password_and_follows_new_ones(
    mosquitto, tmp_path: Path, started
) -> None:
    words = tmp_path / "passwords"
    words.write_text("gw:sesame\n")
    words.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(words)], check=True)
    tls = BridgeTls(
        ca_file=tmp_path / "plant-ca.crt", certificate_file=tmp_path / "gw.crt", key_file=tmp_path / "gw.key"
    )

    def certify() -> None:
        """The broker's authority, the broker and the gateway, under the same names each time."""
        mosquitto.stop()
        made = Authority(tmp_path, "plant-ca")
        made.issue("gw")
        certificate, key = made.issue("broker")
        mosquitto.settings = (
            f"allow_anonymous false\npassword_file {words}\ncafile {made.certificate}\n"
            f"certfile {certificate}\nkeyfile {key}\nrequire_certificate true\n"
        )
        mosquitto.start()

    certify()
    bridge, counts = started(settings(mosquitto.port, tls=tls, username="gw", password="sesame"))
    sensor = Sensor(mosquitto.port, tls=tls.context, username="gw", password="sesame")
    try:
        for number in range(2):
            if number:
                certify()
                wait_subscribed(bridge._session)
                wait_subscribed(sensor.session)
            sensor.send("in/a", json.dumps({"inputs": SAMPLES[0].tolist(), "id": number}).encode())
            assert sensor.hear()[1]["id"] == number
    finally:
        sensor.session.close()
    # It counts an answer once the broker has it, which may be after the sensor has.
    wait_until(lambda: counts.get("bridge-1", ANSWERED) == 2, what="both answers to be counted")
    unknown = MqttSession("127.0.0.1", mosquitto.port, "gw", tls=tls.context, username="gw", password="no")
    with unknown:
        wait_until(lambda: "refuses" in unknown.last_error, what="the refusal of a wrong password")


CONFIG = """
[[bridge]]
broker = "{broker}"
input_topic = "in/+"
output_topic = "out/{{topic}}"
error_topic = "errors"

[[bridge]]
name = "vibration"
broker = "{broker}"
input_topic = "raw/in"
output_topic = "out/raw"
format = "raw"

[[folder]]
path = "samples"
format = "npy"
settle_s = 0
poll_s = 0.1
"""


def test_an_agent_serves_bridges_and_a_folder_by_configuration_alone(
    mosquitto, sensor, tmp_path: Path
) -> None:
    cloud = Cloud(mosquitto.host, mosquitto.port)
    config = tmp_path / "agent.toml"
    config.write_text(CONFIG.format(broker=cloud.broker))
    samples = tmp_path / "samples"
    samples.mkdir()
    agent = AgentProcess(cloud, tmp_path, config=str(config), serve_rest="127.0.0.1:0")
    models = [ship(make_model(1), metric="accuracy"), ship(make_model(2), metric="r2")]
    try:
        for model in models:
            cloud.publish(model)
        cloud.deploy("gw-1", models[0], 1)
        agent.start().wait_state("active", 1)
        wait_until(lambda: "source vibration:" in agent.log, what="the bridges")
        expected = [load_onnx(model.data).run(SAMPLES) for model in models]

        # Retained, so that it is all one whether the subscription or the sample comes first.
        sensor.send("raw/in", SAMPLES[3].astype("<f4").tobytes(), retain=True)
        topic, said = sensor.hear()
        assert (topic, said["generation"], said["model"]) == ("out/raw", 1, models[0].digest)
        np.testing.assert_allclose(said["outputs"], expected[0][3], rtol=1e-4)
        np.save(samples / "a.npy", SAMPLES[4])
        wait_until((samples / "done" / "a.npy").exists, what="the file to be done")
        said = json.loads((samples / "out" / "a.npy.json").read_bytes())
        np.testing.assert_allclose(said["outputs"], expected[0][4], rtol=1e-4)

        # A swap under load: each sample is answered, by the model that it names.
        cloud.deploy("gw-1", models[1], 2)
        generations: Counter[int] = Counter()
        number = 0
        until_s = time.monotonic() + 90
        while generations[2] < 20 and time.monotonic() < until_s:
            index = number % len(SAMPLES)
            payload = json.dumps({"inputs": SAMPLES[index].tolist(), "id": number}).encode()
            sensor.send("in/a", payload, retain=number == 0)
            topic, said = sensor.hear()
            assert (topic, said.get("id")) == ("out/in/a", number), said
            generation = said["generation"]
            np.testing.assert_allclose(said["outputs"], expected[generation - 1][index], rtol=1e-4)
            assert ("class" in said) == (generation == 1)  # the second is a regression
            generations[generation] += 1
            number += 1
        assert generations[1] > 0
        assert generations[2] >= 20

        sensor.send("in/a", b'{"inputs": [1], "id": "short"}')
        topic, said = sensor.hear()
        assert (topic, said["id"], said["code"]) == ("errors", "short", "input-size")
        sensor.send("in/a", b"nonsense")
        assert sensor.hear()[1]["code"] == "input-json"
        status = agent.wait(lambda status: bool(status["rest_address"]))

        def counted() -> list[str]:
            with urllib.request.urlopen(f"http://{status['rest_address']}/metrics", timeout=60) as page:
                return [
                    line
                    for line in page.read().decode().splitlines()
                    if line.startswith("edgeloop_source_samples_total")
                ]

        wanted = {
            f'edgeloop_source_samples_total{{source="{source}",outcome="{outcome}"}} {count}'
            for source, outcome, count in (
                ("bridge-1", "answered", number),
                ("bridge-1", "failed", 2),
                ("bridge-1", "dropped", 0),
                ("vibration", "answered", 1),
                ("folder-1", "answered", 1),
            )
        }
        # An answer counts once the broker has it, which may be after the sensor has.
        wait_until(lambda: wanted <= set(counted()), what=lambda: f"{wanted}: {counted()}")
        assert agent.stop() == 0
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()
        cloud.close()
