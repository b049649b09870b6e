"""Where settings come from, and how the fabric says that one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric import settings
from fabric.contracts.errors import ConfigError
from fabric.contracts.policy import POLICY_KINDS
from fabric.settings.settings import SOCKET_PATH_LIMIT, broker_on

MODELS = "models:\n  - name: m\n    deployments:\n      - {engine: mock, tier: cpu}\n"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "fabric.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.load(write(text), {})
    return caught.value.message


def test_no_file_gives_a_fabric_that_runs_on_loopback(tmp_path: Path) -> None:
    loaded = settings.load(environ={})
    assert (loaded.host, loaded.port, loaded.data_dir) == ("127.0.0.1", 8080, tmp_path / ".fabric")
    assert loaded.files_dir == tmp_path / ".fabric/files"
    assert loaded.database_url == f"sqlite:///{tmp_path}/.fabric/ledger.sqlite3"
    assert loaded.config is None
    [deployment] = loaded.catalog.of_tier("cpu")
    assert (deployment.engine, Path(deployment.model).name) == ("llamacpp", "tiny.gguf")


def test_environment_wins_over_file_wins_over_default() -> None:
    write("port: 9001\nlog_level: DEBUG\n" + MODELS)
    loaded = settings.load(environ={"FABRIC_PORT": "9002"})
    assert (loaded.port, loaded.log_level, loaded.host) == (9002, "DEBUG", "127.0.0.1")


def test_the_file_is_found_by_argument_then_variable_then_name() -> None:
    write("port: 1\n")
    write("port: 2\n", "two.yaml")
    write("port: 3\n", "three.yaml")
    assert settings.load(environ={}).port == 1
    assert settings.load(environ={"FABRIC_CONFIG": "two.yaml"}).port == 2
    assert settings.load(Path("three.yaml"), {"FABRIC_CONFIG": "two.yaml"}).port == 3


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settings.load(environ={"FABRIC_PORT": "", "FABRIC_REDIS_URL": ""}).port == 8080


def test_an_empty_file_changes_nothing() -> None:
    assert settings.load(write("# nothing yet\n"), {}).catalog == settings.load(environ={}).catalog


def test_paths_in_the_file_count_from_its_folder(tmp_path: Path) -> None:
    models = MODELS.replace("mock", "llamacpp").replace("cpu}", "cpu, model: ../small.gguf}")
    path = write("data_dir: data\n" + models, "deep/er/fabric.yaml")
    loaded = settings.load(path, {})
    assert loaded.data_dir == tmp_path / "deep/er/data"
    assert Path(loaded.catalog.by_deployment["m-cpu"].model).resolve() == tmp_path / "deep/small.gguf"


def test_paths_in_the_environment_count_from_the_working_directory(tmp_path: Path) -> None:
    write(MODELS, "deep/fabric.yaml")
    loaded = settings.load(Path("deep/fabric.yaml"), {"FABRIC_DATA_DIR": "here", "FABRIC_FILES_DIR": "/files"})
    assert (loaded.data_dir, loaded.files_dir) == (tmp_path / "here", Path("/files"))


def test_what_anthropics_api_has_no_word_for_is_not_among_what_it_can_do_by_default() -> None:
    write(MODELS.replace("mock", "anthropic").replace("cpu}", "cloud, model: m}"))
    assert settings.load(environ={}).catalog.by_deployment["m-cloud"].capabilities == ("chat",)


def test_the_cpu_model_variable_replaces_the_shipped_model(tmp_path: Path) -> None:
    loaded = settings.load(environ={"FABRIC_CPU_MODEL": "big.gguf"})
    assert loaded.catalog.by_model["assistant"].deployments[0].model == str(tmp_path / "big.gguf")


def test_the_cpu_model_variable_fills_in_for_a_deployment_without_a_file() -> None:
    write(MODELS.replace("mock", "llamacpp"))
    loaded = settings.load(environ={"FABRIC_CPU_MODEL": "/big.gguf"})
    assert loaded.catalog.by_deployment["m-cpu"].model == "/big.gguf"


def test_a_cpu_model_variable_that_nothing_would_use_is_an_error() -> None:
    write(MODELS)
    with pytest.raises(ConfigError, match="FABRIC_CPU_MODEL is set, but"):
        settings.load(environ={"FABRIC_CPU_MODEL": "/big.gguf"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot: 1\n", "fabric.yaml:1: unknown key `prot`; did you mean `port`? Known here: host, port,"),
        (
            MODELS.replace("tier: cpu", "tier: cpu,\n         contxt_window: 64"),
            "fabric.yaml:5: unknown key `models[0].deployments[0].contxt_window`; did you mean `context_window`?",
        ),
        (
            MODELS.replace("mock", "llamacpp").replace("cpu}", "cpu, base_url: 'http://x'}"),
            "fabric.yaml:4: `models[0].deployments[0]` is wrong: `base_url` means nothing to llamacpp, which runs in",
        ),
        (
            MODELS.replace("mock", "anthropic").replace("cpu}", "cloud, capabilities: [chat, logprobs, completions]}"),
            "fabric.yaml:4: `models[0].deployments[0]` is wrong: `capabilities`: Anthropic's API has no completions,",
        ),
        (MODELS.replace("mock", "mokc"), "fabric.yaml:4: `models[0].deployments[0].engine` is wrong: use 'llamacpp'"),
        ("\nprivacy:\n  restricted: {redact: true}\n", "fabric.yaml:3: `privacy.restricted.tiers` is missing."),
        ("port: 70000\n", "fabric.yaml:1: `port` is wrong: Input should be less than or equal to 65535"),
        ("host: a\nport: 1\nhost: b\n", "fabric.yaml:3: `host` is given twice here; keep one."),
        ("models: []\n", "fabric.yaml:1: `models` is wrong"),
        ("port: [1\n", "fabric.yaml:2: expected ',' or ']'"),
        ("- 1\n", "fabric.yaml:1: the file must hold keys and values"),
        (MODELS + MODELS.removeprefix("models:\n"), "fabric.yaml:1: `models`: model name used twice: m"),
        ("colours: {}\n", "fabric.yaml:1: unknown key `colours`."),
        ("policies:\n  p: {kind: cheepest}\n", "fabric.yaml:2: `policies.p.kind` is wrong: use 'local-first'"),
        ("policies:\n  p:\n    kind: cheapest\n    max_lag: 1\n", "fabric.yaml:4: unknown key `policies.p.max_lag`"),
        ("policies:\n  p: {kind: weighted}\n", "fabric.yaml:2: `policies.p` is wrong: a `weighted` policy needs"),
        (
            "policies:\n  p:\n    kind: weighted\n    weights: {cots: 1}\n",
            "fabric.yaml:4: unknown key `policies.p.weights.cots`; did you mean `cost`? Known here: cost, latency,",
        ),
        (
            "policies:\n  p: {kind: cheapest, weights: {cost: 1}}\n",
            "fabric.yaml:2: `policies.p` is wrong: `weights` are for `kind: weighted`",
        ),
        ("policies:\n  p: {kind: weighted, weights: {}}\n", "fabric.yaml:2: `policies.p.weights` is wrong: at least"),
        ("policies:\n  a b: {kind: fastest}\n", "fabric.yaml:2: `policies.a b` is wrong: String should match"),
        ("\ndefault_policy: mine\n", "fabric.yaml:2: `default_policy` is wrong: use one of best-quality, cheapest,"),
        ("redis_url: http://x\n", "fabric.yaml:1: `redis_url` is wrong: String should match pattern"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, expected: str) -> None:
    assert complaint(text).startswith(expected)


def test_policies_reach_the_catalogue_beside_the_built_in_ones() -> None:
    policies = "policies:\n  mine: {kind: weighted, max_cost_usd: 0.01, weights: {cost: 2, quality: 1}}\n"
    for models in ("", MODELS):
        catalog = settings.load(write(policies + "default_policy: mine\n" + models), {}).catalog
        assert set(catalog.by_policy) == {*POLICY_KINDS, "mine"}
        assert catalog.default_policy == "mine"
        assert catalog.by_policy["mine"].max_cost_usd == 0.01
    assert settings.load(write(MODELS), {}).catalog.default_policy == "local-first"


def test_all_complaints_come_at_once_and_in_order() -> None:
    lines = complaint("prot: 1\n" + MODELS.replace("mock", "mokc").replace("cpu", "cpuu")).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["fabric.yaml:1:", "fabric.yaml:5:", "fabric.yaml:5:"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Can't read the configuration file nowhere\.yaml"):
        settings.load(Path("nowhere.yaml"), {})


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FABRIC_PROT", "1", "FABRIC_PROT means nothing to the fabric; did you mean FABRIC_PORT?"),
        ("FABRIC_PORT", "eighty", "FABRIC_PORT is wrong: Input should be a valid integer"),
        ("FABRIC_HTTP_PORT", "80", "FABRIC_HTTP_PORT means nothing"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        settings.load(environ={variable: value})


def test_variables_of_the_client_and_of_kubernetes_are_let_be() -> None:
    links = {"FABRIC_API_PORT": "tcp://10.0.0.1:80", "FABRIC_SERVICE_HOST": "10.0.0.1", "FABRIC_PORT_80_TCP_ADDR": "1"}
    assert settings.load(environ={"FABRIC_URL": "http://x", "FABRIC_API_KEY": "k", **links}).port == 8080


def test_the_embedded_store_has_its_socket_in_the_data_directory(tmp_path: Path) -> None:
    loaded = settings.load(environ={"FABRIC_DATA_DIR": "/srv/fabric"})
    assert loaded.socket == Path("/srv/fabric/valkey.sock")
    assert loaded.redis_url == "unix:///srv/fabric/valkey.sock?db=0"
    assert loaded.broker_url == "redis+socket:///srv/fabric/valkey.sock?virtual_host=1"


def test_a_deep_data_directory_gets_a_short_socket_that_every_process_finds() -> None:
    deep = {"FABRIC_DATA_DIR": "/srv/" + "deep/" * 40}
    first, second = settings.load(environ=deep).socket, settings.load(environ=deep).socket
    other = settings.load(environ={"FABRIC_DATA_DIR": "/srv/" + "deep/" * 41}).socket
    assert first == second != other
    assert len(str(first)) < SOCKET_PATH_LIMIT


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/1"),
        ("rediss://:secret@cache?timeout=3", "rediss://:secret@cache/1?timeout=3"),
        ("unix:///run/redis.sock?db=0", "redis+socket:///run/redis.sock?virtual_host=1"),
    ],
)
def test_the_broker_is_database_1_of_the_same_server(redis_url: str, broker: str) -> None:
    assert broker_on(redis_url) == broker
    assert settings.load(environ={"FABRIC_REDIS_URL": redis_url}).socket is None


def test_postgresql_is_spoken_through_psycopg() -> None:
    loaded = settings.load(environ={"FABRIC_DATABASE_URL": "postgresql://u:p@h/d"})
    assert loaded.database_url == "postgresql+psycopg://u:p@h/d"


def test_passwords_stay_out_of_the_representation() -> None:
    urls = {"FABRIC_REDIS_URL": "redis://:hunter2@h", "FABRIC_DATABASE_URL": "postgresql://u:hunter2@h/d"}
    assert "hunter2" not in repr(settings.load(environ=urls))
    with pytest.raises(ConfigError) as caught:
        settings.load(environ={"FABRIC_BROKER_URL": "smtp://:hunter2@h"})
    assert "hunter2" not in str(caught.value)


PLACES = """\
models:
  - name: m
    deployments:
      - {engine: mock, tier: cpu}
"""


@pytest.mark.parametrize(
    ("rules", "line", "said"),
    [
        ('- {when: tenantt == "x", deny: "no"}', 6, "unknown name `tenantt`"),
        ("- when: prompt_tokens\n    deny: no-way", 6, "it is int, and not true or false"),
        ("- require: {deployment: m-gpu}", 6, "there is no deployment `m-gpu`; there are m-cpu"),
        ("- allow: true\n  - prefer:\n      region: [local, eu]", 8, "there is no region `eu`; there are local"),
        ("- set: {policy: none-such}", 6, "there is no policy `none-such`"),
        ("- canary: {deployment: x, weight: 0.1}", 6, "there is no deployment `x`"),
        ("- require: {tier: tpu}", 6, "use 'cpu', 'gpu' or 'cloud'"),
        ("- {when: batch}", 6, "the rule does nothing"),
        ('- {deny: "no", prefer: {tier: cpu}}', 6, "`deny` stands alone; it can't go with `prefer`"),
        ("- canary: {deployment: m-cpu, weight: 2}", 6, "less than or equal to 1"),
        ('- {when: load.cpu > 0.5, deny: "no"}', 6, "`load.cpu` isn't known when a request comes"),
        ('- {when: priority == "batch", set: {priority: standard, policy: cheapest}}', 6, "make it two"),
        ("- {name: a, allow: true}\n  - {name: a, allow: true}", 7, "two rules have the name `a`"),
        ("- allow: true\nrule_headers: [authorization]", 7, "carries a secret"),
        ("- allow: true\nrule_timezone: Mars/Phobos", 7, "use a time zone's name"),
        ("- {alow: true}", 6, "did you mean `allow`?"),
    ],
)
def test_a_rule_that_is_wrong_is_named_with_its_line(rules: str, line: int, said: str) -> None:
    message = complaint(f"{PLACES}rules:\n  {rules}\n")
    assert message.startswith(f"fabric.yaml:{line}: ")
    assert said in message


def test_rules_are_part_of_the_catalogue() -> None:
    loaded = settings.load(write(PLACES + 'rules:\n  - {name: r, when: "batch", require: {tier: cpu}}\n'), {})
    [rule] = loaded.catalog.rules
    assert (rule.name, rule.when, rule.require and rule.require.tier) == ("r", "batch", ("cpu",))
