//! Good configurations and bad ones, with the exact sentences a person gets to read.

use domain::{AccountName, OnUnknown, Role};
use rstest::rstest;
use runtime::config::{BlobsPlace, LogFormat, QueuePlace, StorePlace, Tuning};
use runtime::{Config, Env, Mode, password};
use std::path::{Path, PathBuf};
use std::time::Duration;

const APP_SECRET: &str = "canary-0123456789abcdef";
const TOKEN: &str = "EAAG-canary";
const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
/// argon2id of "correct horse", made by `roost user hash`.
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$mO3/OGbd4sGQTtOaQRG5YgbdqAW3rbsuLlTqUjTiqfI";

fn env() -> Env {
    Env::from([
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", "canary-verify"),
        ("WHATSAPP_TOKEN", TOKEN),
        ("OPS_PASSWORD_HASH", HASH),
        ("CRM_TOKEN_SHA256", DIGEST),
        ("SHORT", "canary-short"),
        ("EMPTY", ""),
        ("PATH", "/usr/bin"),
    ])
}

fn with(more: &[(&str, &str)]) -> Env {
    let base = ["META_APP_SECRET", "META_VERIFY_TOKEN", "WHATSAPP_TOKEN", "OPS_PASSWORD_HASH", "CRM_TOKEN_SHA256"];
    let known = env();
    base.iter().map(|name| (*name, known.get(name).unwrap())).chain(more.iter().copied()).collect()
}

fn parse(text: &str) -> Result<Config, Vec<String>> {
    parse_with(text, &env())
}

fn parse_with(text: &str, env: &Env) -> Result<Config, Vec<String>> {
    Config::parse(Some(Path::new("roost.toml")), text, false, env).map_err(|error| {
        assert!(!error.to_string().contains("canary"), "a secret in {error}");
        error.problems().to_vec()
    })
}

const SOURCE: &str = "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"env:META_APP_SECRET\"]\n";
const ACCOUNT: &str = "[[accounts]]\nname = \"sales\"\nchannel = \"WHATSAPP\"\nsource = \"meta\"\nphone_number_id = \"1065\"\naccess_token = \"env:WHATSAPP_TOKEN\"\n";

#[test]
fn the_example_is_a_configuration_and_names_every_setting() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/roost.example.toml");
    let config = Config::load(Some(&path), false, &env()).unwrap();
    let StorePlace::Postgres(url) = &config.store.place else { panic!("{:?}", config.store) };
    assert_eq!(url.expose(), "postgres://roost@db/roost");
    let QueuePlace::RabbitMq(url) = &config.queue.place else { panic!("{:?}", config.queue) };
    assert_eq!(url.expose(), "amqp://guest:guest@mq:5672/%2f");
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.accounts[0].api_base, "https://graph.facebook.com/v25.0");
    assert_eq!(config.users[0].role, Role::Admin);
    assert_eq!(config.tuning, Tuning::default(), "[tuning] in the example must show the defaults");
    assert_eq!(
        config.http.limits,
        runtime::http_server::Limits::default(),
        "[http] in the example must show the defaults"
    );

    let text = std::fs::read_to_string(&path).unwrap();
    for line in config.print().lines() {
        if let Some((key, _)) = line.split_once(" = ") {
            let there = text.lines().any(|line| line.split(" = ").next() == Some(key));
            assert!(there, "`{key}` is not in the example");
        }
    }
}

#[test]
fn nothing_at_all_is_a_configuration_too() {
    let config = Config::parse(None, "", false, &Env::default()).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("./roost-data"));
    assert!(matches!(&config.store.place, StorePlace::Sqlite(path) if path == Path::new("./roost-data/roost.db")));
    assert!(matches!(&config.queue.place, QueuePlace::Embedded(path) if path == Path::new("./roost-data/queue.db")));
    assert_eq!(config.blobs, BlobsPlace::Folder("./roost-data/media".into()));
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.http.admin_listen.to_string(), "127.0.0.1:9090");
    assert!(config.accounts.is_empty() && config.sources.is_empty());
    assert_eq!(config.print(), Config::defaults(Path::new("./roost-data")).print());
}

#[test]
fn defaults_of_sources_and_accounts_are_the_providers() {
    let config = parse(&format!("{SOURCE}{ACCOUNT}")).unwrap();
    let source = config.source("meta").unwrap();
    assert_eq!(source.secrets[0].expose(), APP_SECRET);
    assert_eq!(source.max_body, 4_000_000);
    assert!(source.crm_alias, "the only meta source gets the CRM's old address");
    let name: AccountName = "sales".parse().unwrap();
    let account = config.account(&name).unwrap();
    assert_eq!(account.access_token.expose(), TOKEN);
    assert_eq!(account.api_base, "https://graph.facebook.com/v25.0");
    assert!((account.rate_per_second - 80.0).abs() < f64::EPSILON);
    assert_eq!((account.pair_interval, account.pair_burst), (Duration::from_secs(6), 45));
    assert_eq!(account.window, Some(Duration::from_secs(86_400)));
    assert_eq!(account.on_unknown, OnUnknown::Hold);
}

#[test]
fn a_source_can_have_several_secrets_while_rotating() {
    let env = with(&[("NEW", "another-secret-of-this-app")]);
    let config =
        parse_with(&SOURCE.replace("[\"env:META_APP_SECRET\"]", "[\"env:META_APP_SECRET\", \"env:NEW\"]"), &env)
            .unwrap();
    let secrets = config.sources[0].secrets.iter().map(domain::Secret::expose).collect::<Vec<_>>();
    assert_eq!(secrets, [APP_SECRET, "another-secret-of-this-app"]);
}

#[test]
fn a_secret_can_come_from_a_file_and_its_last_newline_is_not_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{APP_SECRET}\n")).unwrap();
    let text = SOURCE.replace("env:META_APP_SECRET", &format!("file:{}", file.display()));
    assert_eq!(parse(&text).unwrap().sources[0].secrets[0].expose(), APP_SECRET);
}

#[rstest]
// Keys and tables nobody knows.
#[case::key(
    "[http]\nlistn = \"127.0.0.1:1\"",
    "roost.toml line 2: `listn` is not a key of [http]; did you mean `listen`?"
)]
#[case::admin(
    "[http]\nadminlisten = \"127.0.0.1:1\"",
    "roost.toml line 2: `adminlisten` is not a key of [http]; did you mean `admin_listen`?"
)]
#[case::far(
    "[queue]\ncolour = \"red\"",
    "roost.toml line 2: `colour` is not a key of [queue]; its keys are `prefix`, `url`."
)]
#[case::table("[htttp]\n", "roost.toml line 1: there is no table [htttp]; did you mean [http]?")]
#[case::list("[[acounts]]\nname = \"x\"", "roost.toml line 1: there is no table [acounts]; did you mean [[accounts]]?")]
#[case::top("datadir = \"x\"", "roost.toml line 1: `datadir` is not a key of the top level; did you mean `data_dir`?")]
#[case::in_source(&format!("{SOURCE}verify_tokn = \"env:META_VERIFY_TOKEN\""), "roost.toml line 5: `verify_tokn` is not a key of [[sources]] meta; did you mean `verify_token`?")]
#[case::in_tuning(
    "[tuning]\nlease = 3",
    "roost.toml line 2: `lease` is not a key of [tuning]; did you mean `lease_ms`?"
)]
#[case::one_bracket(
    "[sources]\nname = \"meta\"",
    "roost.toml line 1: write [[sources]], with two brackets, once for each of them."
)]
#[case::two_brackets("[[http]]\n", "roost.toml line 1: write [http], not [[http]]: there is one.")]
#[case::not_toml("[http\n", "roost.toml line 1: this is not TOML: unclosed table, expected `]`.")]
// Values.
#[case::number("[http]\nlisten = 8080", "roost.toml line 2: `listen` in [http] must be text in quotes, not a number.")]
#[case::address(
    "[http]\nlisten = \"8080\"",
    "roost.toml line 2: `listen` in [http] must be an address and a port such as \"0.0.0.0:8080\", not \"8080\"."
)]
#[case::same_port(
    "[http]\nlisten = \"127.0.0.1:9090\"",
    "roost.toml line 1: [http] has 127.0.0.1:9090 for both `listen` and `admin_listen`: give each a port of its own."
)]
#[case::bounds(
    "[http]\nmax_connections = 0",
    "roost.toml line 2: `max_connections` in [http] must be a whole number from 1 to 1000000."
)]
#[case::word(
    "[log]\nformat = \"jsn\"",
    "roost.toml line 2: `format` in [log] must be \"auto\" or \"json\" or \"pretty\", not \"jsn\"; did you mean \"json\"?"
)]
#[case::level(
    "[log]\nlevel = \"loud=x\"",
    "roost.toml line 2: `level` in [log] must be error, warn, info, debug or trace, or directives such as \"info,sender=debug\", not \"loud=x\"."
)]
#[case::store(
    "[store]\nurl = \"mysql://db\"",
    "roost.toml line 2: `url` in [store] must begin with postgres:// or sqlite:."
)]
#[case::memory(
    "[store]\nurl = \"sqlite::memory:\"",
    "roost.toml line 2: `url` in [store] must name a file, such as \"sqlite://roost-data/roost.db\"; a database in memory forgets everything."
)]
#[case::queue(
    "[queue]\nurl = \"kafka://mq\"",
    "roost.toml line 2: `url` in [queue] must be \"embedded\", or begin with amqp:// or amqps://."
)]
#[case::lease(
    "[tuning]\nlease_ms = 10000",
    "roost.toml line 1: [tuning] must have `lease_ms` (10000) at least one and a half times `call_timeout_ms` (10000), or a slow send could be made twice."
)]
#[case::body(
    "[http]\nrequest_timeout_ms = 1000",
    "roost.toml line 1: [http] must have `request_timeout_ms` at least as long as `body_timeout_ms`: the body is part of the request."
)]
// What a later version brings.
#[case::s3(
    "[media]\nurl = \"s3://bucket/prefix\"",
    "roost.toml line 2: `url` in [media] begins with s3://, which is not served by this version yet."
)]
#[case::drafts(
    "[drafts]\nmodel = \"qwen3\"",
    "roost.toml line 1: [drafts] is not served by this version yet: take it out."
)]
#[case::mailgun(
    "[[sources]]\nname = \"mg\"\nkind = \"mailgun\"\nsigning_key = [\"env:X\"]",
    "roost.toml line 3: `kind` in [[sources]] mg is \"mailgun\", which is not served by this version yet."
)]
#[case::page(
    "[[accounts]]\nname = \"page\"\nchannel = \"FACEBOOK\"\npage_id = \"3\"",
    "roost.toml line 3: `channel` in [[accounts]] page is \"FACEBOOK\", which is not served by this version yet."
)]
#[case::email(
    "[[accounts]]\nname = \"mail\"\nchannel = \"EMAIL\"",
    "roost.toml line 3: `channel` in [[accounts]] mail is \"EMAIL\", which is not served by this version yet."
)]
#[case::unknown_kind(
    "[[sources]]\nname = \"x\"\nkind = \"telegram\"",
    "roost.toml line 3: `kind` in [[sources]] x must be \"meta\", not \"telegram\"."
)]
#[case::lower_case(
    "[[accounts]]\nname = \"x\"\nchannel = \"whatsapp\"",
    "roost.toml line 3: `channel` in [[accounts]] x must be \"WHATSAPP\", not \"whatsapp\"; write it in capitals."
)]
#[case::notes(
    "[[accounts]]\nname = \"x\"\nchannel = \"INTERNAL_NOTE\"",
    "roost.toml line 3: `channel` in [[accounts]] x must not be \"INTERNAL_NOTE\": notes need no account."
)]
// Secrets.
#[case::literal(&SOURCE.replace("env:META_APP_SECRET", "canary"), "roost.toml line 4: `app_secret` in [[sources]] meta has no value: it must be a reference, env:NAME or file:/path, not the secret itself.")]
#[case::unset(&SOURCE.replace("META_APP_SECRET", "NOT_SET"), "roost.toml line 4: `app_secret` in [[sources]] meta has no value: the environment variable NOT_SET is not set: set it.")]
#[case::empty(&SOURCE.replace("META_APP_SECRET", "EMPTY"), "roost.toml line 4: `app_secret` in [[sources]] meta has no value: env:EMPTY is empty.")]
#[case::short(&SOURCE.replace("META_APP_SECRET", "SHORT"), "roost.toml line 4: `app_secret` in [[sources]] meta has 12 bytes; a signing secret needs at least 16.")]
#[case::no_file(&SOURCE.replace("env:META_APP_SECRET", "file:/nowhere/secret"), "roost.toml line 4: `app_secret` in [[sources]] meta has no value: /nowhere/secret cannot be read: there is no such file.")]
#[case::none(
    "[[sources]]\nname = \"meta\"\nkind = \"meta\"",
    "roost.toml line 1: [[sources]] meta needs `app_secret`: it is the Meta app's secret, such as [\"env:META_APP_SECRET\"]; without it nobody could tell a forged webhook."
)]
#[case::no_secrets(&SOURCE.replace("[\"env:META_APP_SECRET\"]", "[]"), "roost.toml line 4: `app_secret` in [[sources]] meta is an empty list: without a secret nobody could tell a forged webhook.")]
#[case::token(&format!("{SOURCE}{}", ACCOUNT.replace("env:WHATSAPP_TOKEN", "canary")), "roost.toml line 10: `access_token` in [[accounts]] sales has no value: it must be a reference, env:NAME or file:/path, not the secret itself.")]
#[case::password(
    "[[users]]\nemail = \"a@b\"\npassword_hash = \"canary\"",
    "roost.toml line 3: `password_hash` in [[users]] a@b has no value: it must be a reference, env:NAME or file:/path, not the secret itself."
)]
#[case::not_a_hash(
    "[[users]]\nemail = \"a@b\"\npassword_hash = \"env:SHORT\"",
    "roost.toml line 3: `password_hash` in [[users]] a@b must be an argon2id hash as `roost user hash` prints it, not the password."
)]
#[case::not_a_digest(
    "[[api_tokens]]\nname = \"crm\"\nsha256 = \"env:SHORT\"",
    "roost.toml line 3: `sha256` in [[api_tokens]] crm must be a SHA-256 in hex, 64 characters, not the token: printf %s \"$TOKEN\" | sha256sum."
)]
#[case::role(
    "[[users]]\nemail = \"a@b\"\npassword_hash = \"env:OPS_PASSWORD_HASH\"\nrole = \"amdin\"",
    "roost.toml line 4: `role` in [[users]] a@b must be \"viewer\" or \"agent\" or \"operator\" or \"admin\", not \"amdin\"; did you mean \"admin\"?"
)]
// Parts that do not fit each other.
#[case::twice(&format!("{SOURCE}{SOURCE}"), "roost.toml: [[sources]] meta is there twice: give each source a name of its own.")]
#[case::no_source(&format!("{SOURCE}{}", ACCOUNT.replace("source = \"meta\"", "source = \"meat\"")), "roost.toml: [[accounts]] sales names the source meat, but no [[sources]] entry has that name; did you mean meta?")]
#[case::no_sources(
    ACCOUNT,
    "roost.toml: [[accounts]] sales names the source meta, but no [[sources]] entry has that name; add one, or change `source`."
)]
#[case::same_number(&format!("{SOURCE}{ACCOUNT}{}", ACCOUNT.replace("sales", "support")), "roost.toml: two [[accounts]] are the same WHATSAPP 1065: a number can be an account once.")]
#[case::same_account(&format!("{SOURCE}{ACCOUNT}{}", ACCOUNT.replace("1065", "1066")), "roost.toml: [[accounts]] sales is there twice: give each account a name of its own.")]
#[case::alias(&format!("{SOURCE}{}", SOURCE.replace("\"meta\"\nkind", "\"other\"\nkind")), "roost.toml: there are 2 [[sources]] of kind meta and 0 with `crm_alias = true`: let exactly one have it, it gets what arrives at /api/webhooks/whatsapp.")]
#[case::bad_name(&format!("{SOURCE}{}", ACCOUNT.replace("\"sales\"", "\"Sales Team\"")), "roost.toml line 6: `name` in [[accounts]] Sales Team must be 1 to 40 of a-z, 0-9 and -.")]
#[case::number_not_id(&format!("{SOURCE}{}", ACCOUNT.replace("\"1065\"", "\"+971 4 555\"")), "roost.toml line 9: `phone_number_id` in [[accounts]] sales must be Meta's id of the number: digits only, without + or spaces.")]
#[case::plain_http(&format!("{SOURCE}{ACCOUNT}api_base = \"http://graph.example.com\""), "roost.toml line 11: `api_base` in [[accounts]] sales must begin with https://: over plain http the access token could be read on the way.")]
#[case::version(&format!("{SOURCE}{ACCOUNT}api_version = \"25\""), "roost.toml line 11: `api_version` in [[accounts]] sales must look like \"v25.0\", not \"25\".")]
#[case::rate(&format!("{SOURCE}{ACCOUNT}rate_per_second = 0"), "roost.toml line 11: `rate_per_second` in [[accounts]] sales must be a number from 0.1 to 10000.")]
fn a_mistake_is_told_in_one_sentence(#[case] text: &str, #[case] sentence: &str) {
    assert_eq!(parse(text).map(|_| ()), Err(vec![sentence.to_owned()]));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text =
        "[http]\nlistn = \"x\"\n[queue]\nurl = \"kafka:\"\n[[sources]]\nname = \"meta\"\nkind = \"meta\"\n[drafts]\n";
    let problems = parse(text).map(|_| ()).unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:#?}");
}

#[rstest]
#[case::typo(
    "ROOST_HTTP_LISTN",
    "127.0.0.1:1",
    "The environment variable ROOST_HTTP_LISTN is not a setting; did you mean ROOST_HTTP_LISTEN?"
)]
#[case::far(
    "ROOST_QQQ",
    "1",
    "The environment variable ROOST_QQQ is not a setting; settings from the environment are called ROOST_<TABLE>_<KEY>, such as ROOST_HTTP_LISTEN."
)]
#[case::value(
    "ROOST_HTTP_LISTEN",
    "nowhere",
    "The environment variable ROOST_HTTP_LISTEN must be an address and a port such as \"0.0.0.0:8080\", not \"nowhere\"."
)]
#[case::number(
    "ROOST_TUNING_SWEEP_MS",
    "soon",
    "The environment variable ROOST_TUNING_SWEEP_MS must be a whole number from 10 to 60000."
)]
#[case::now(
    "ROOST_NOW",
    "2026-11-22T09:30:00Z",
    "ROOST_NOW moves the clock and is only for trying things: unset it, or start with --demo."
)]
#[case::log(
    "ROOST_LOG",
    "info,sender=verbose",
    "The environment variable ROOST_LOG must be a level such as info or directives such as info,sender=debug, not \"info,sender=verbose\"."
)]
fn a_mistake_in_the_environment_is_told_too(#[case] name: &str, #[case] value: &str, #[case] sentence: &str) {
    assert_eq!(parse_with("", &with(&[(name, value)])).map(|_| ()), Err(vec![sentence.to_owned()]));
}

#[test]
fn single_settings_come_from_the_environment_and_go_before_the_file() {
    let env = with(&[
        ("ROOST_HTTP_ADMIN_LISTEN", "0.0.0.0:9191"),
        ("ROOST_HTTP_LISTEN", "localhost:8181"),
        ("ROOST_DATA_DIR", "/var/lib/roost"),
        ("ROOST_STORE_URL", "sqlite:///var/lib/roost/rows.db"),
        ("ROOST_QUEUE_PREFIX", "t1."),
        ("ROOST_TUNING_LEASE_MS", "30000"),
        ("ROOST_TUNING_RETRY_SCALE", "0.5"),
        ("ROOST_LOG", "debug"),
        ("ROOST_LOG_FORMAT", "json"),
    ]);
    let config =
        parse_with("data_dir = \"x\"\n[http]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"warn\"\n", &env).unwrap();
    assert_eq!(config.http.admin_listen.to_string(), "0.0.0.0:9191");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8181");
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/roost"));
    assert!(matches!(&config.store.place, StorePlace::Sqlite(path) if path == Path::new("/var/lib/roost/rows.db")));
    assert_eq!(config.queue.prefix, "t1.");
    assert_eq!(config.tuning.lease, Duration::from_secs(30));
    assert!((config.tuning.retry_scale - 0.5).abs() < f64::EPSILON);
    assert_eq!((config.log.level.as_str(), config.log.format), ("debug", LogFormat::Json));
}

#[test]
fn variables_that_are_no_settings_of_ours_are_left_alone() {
    let env = with(&[
        ("ROOST_CONFIG", "elsewhere.toml"),
        ("ROOST_TEST_DATABASE_URL", "postgres://x"),
        // Named by a reference.
        ("ROOST_APP_SECRET", "a-secret-of-some-length"),
        // What Kubernetes adds when a service is called `roost`.
        ("ROOST_SERVICE_HOST", "10.0.0.1"),
        ("ROOST_SERVICE_PORT_HTTP", "8080"),
        ("ROOST_PORT", "tcp://10.0.0.1:8080"),
        ("ROOST_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ]);
    assert!(parse_with(&SOURCE.replace("META_APP_SECRET", "ROOST_APP_SECRET"), &env).is_ok());
}

#[test]
fn the_clock_can_be_moved_for_trying_things() {
    let env = with(&[("ROOST_NOW", "2026-11-22T09:30:00Z"), ("ROOST_TEST", "1")]);
    let config = parse_with("", &env).unwrap();
    assert!(config.clock().now().to_string().starts_with("2026-11-22T09:30:0"));
    let env = with(&[("ROOST_NOW", "tomorrow"), ("ROOST_TEST", "1")]);
    let problems = parse_with("", &env).map(|_| ()).unwrap_err();
    assert_eq!(problems, ["ROOST_NOW must be a time such as 2026-11-22T09:30:00Z, not \"tomorrow\"."]);
}

#[rstest]
#[case::this_machine("http://127.0.0.1:9999", false, true)]
#[case::this_machine_v6("http://[::1]:9999", false, true)]
#[case::by_name("http://localhost:9999/", false, true)]
#[case::elsewhere("http://simulator:9999", false, false)]
#[case::elsewhere_in_a_demo("http://simulator:9999", true, true)]
#[case::not_a_url("graph.facebook.com", true, false)]
#[case::with_a_password("https://user:pass@graph.facebook.com", true, false)]
fn plain_http_goes_to_this_machine_or_to_a_demo(#[case] base: &str, #[case] demo: bool, #[case] fine: bool) {
    let text = format!("{SOURCE}{ACCOUNT}api_base = {base:?}");
    let config = Config::parse(None, &text, demo, &env());
    assert_eq!(config.is_ok(), fine, "{config:?}");
    if let Ok(config) = config {
        assert_eq!(config.accounts[0].api_base, format!("{}/v25.0", base.trim_end_matches('/')));
    }
}

#[test]
fn files_of_one_process_cannot_carry_single_roles() {
    let alone = Config::parse(None, "", false, &Env::default()).unwrap();
    assert!(alone.fits(Mode::Up).is_ok());
    let error = alone.fits(Mode::Roles).unwrap_err();
    assert_eq!(
        error.problems(),
        [
            "The store is the SQLite file ./roost-data/roost.db, which belongs to one process: set [store] url to a postgres:// address, or run `roost up`.",
            "The queue is embedded, which belongs to one process: set [queue] url to an amqp:// address, or run `roost up`.",
        ]
    );
    let fleet = "[store]\nurl = \"postgres://db/roost\"\n[queue]\nurl = \"amqp://mq\"";
    let fleet = Config::parse(None, fleet, false, &Env::default()).unwrap();
    assert!(fleet.fits(Mode::Roles).is_ok() && fleet.fits(Mode::Up).is_ok());
}

#[test]
fn what_is_printed_masks_every_secret_and_is_a_configuration_where_there_are_none() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/roost.example.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("postgres://roost@db/roost", "postgres://roost:canary@db/roost?password=canary");
    let text = text.replace("guest:guest@", "guest:canary@");
    let config = parse(&text).unwrap();
    for shown in [config.print(), format!("{config:?}")] {
        for secret in ["canary", TOKEN, DIGEST, HASH] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
    assert!(config.print().contains("url = \"postgres://roost:********@db/roost?********\""), "{}", config.print());

    let plain = Config::defaults(Path::new("./elsewhere"));
    assert_eq!(parse(&plain.print()).unwrap().print(), plain.print());
}

#[test]
fn unprotected_connections_to_other_machines_are_a_warning() {
    let text = "[store]\nurl = \"postgres://db/roost\"\n[queue]\nurl = \"amqp://mq\"";
    assert_eq!(
        parse(text).unwrap().warnings,
        [
            "[store] url: the connection to PostgreSQL is not verified; add sslmode=verify-full.",
            "[queue] url: the connection to RabbitMQ is not encrypted; amqps:// is.",
        ]
    );
    let text = "[store]\nurl = \"postgres://db/roost?sslmode=verify-full\"\n[queue]\nurl = \"amqps://mq\"";
    assert!(parse(text).unwrap().warnings.is_empty());
}

#[test]
fn the_file_is_the_named_one_or_the_one_in_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, listen: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("[http]\nlisten = {listen:?}\n")).unwrap();
        path
    };
    let (named, other) = (write("named.toml", "127.0.0.1:1001"), write("other.toml", "127.0.0.1:1002"));
    let env = Env::from([("ROOST_CONFIG", other.to_str().unwrap())]);
    assert_eq!(Config::load(Some(&named), false, &env).unwrap().http.listen.port(), 1001);
    assert_eq!(Config::load(None, false, &env).unwrap().http.listen.port(), 1002);
    let missing = folder.path().join("missing.toml");
    let error = Config::load(Some(&missing), false, &Env::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "There is no configuration file {}: correct --config or ROOST_CONFIG, or leave both out to run on defaults.",
            missing.display()
        )
    );
    let error = Config::load(Some(folder.path()), false, &Env::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("The configuration {} cannot be read: it is a folder.", folder.path().display())
    );
}

#[test]
fn people_and_programs_are_known_by_their_secrets() {
    let text = "[[users]]\nemail = \"Ops@Example.com\"\npassword_hash = \"env:OPS_PASSWORD_HASH\"\n[[api_tokens]]\nname = \"crm\"\nsha256 = \"env:CRM_TOKEN_SHA256\"\n";
    let hash = password::hash("correct horse").unwrap();
    let config =
        parse_with(text, &Env::from([("OPS_PASSWORD_HASH", hash.as_str()), ("CRM_TOKEN_SHA256", DIGEST)])).unwrap();
    let user = &config.users[0];
    assert_eq!(
        (user.email.as_str(), user.name.as_str(), user.role),
        ("ops@example.com", "ops@example.com", Role::Agent)
    );
    assert!(password::verify("correct horse", user.password_hash.expose()));
    assert!(config.api_tokens[0].is("test"), "the digest is of the word test");
    assert!(!config.api_tokens[0].is("Test") && !config.api_tokens[0].is(""));
}
