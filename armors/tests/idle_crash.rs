//! Servers that are killed while their clients have nothing open: nothing is executed again, nothing is compared, nothing shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use environment::{Beside, Environment, compile, free_port, text};

/// A client that is told line by line what to ask.
struct Asker {
    client: Beside,
    input: ChildStdin,
}

impl Asker {
    fn start(environment: &Environment, program: &str, port: u16) -> Asker {
        let program = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(program).display().to_string();
        let mut command = environment.run(&["python3", &program, &port.to_string()]);
        command.stdin(Stdio::piped());
        let mut client = Beside::start(command);
        let input = client.child.stdin.take().unwrap();
        Asker { client, input }
    }

    /// What the client prints when it is told `line`.
    fn ask(&mut self, environment: &Environment, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.client.line().unwrap_or_else(|| panic!("the client has ended after {line:?}\n{}", environment.logs()))
    }
}

/// The FTM's events with this name, once there are so many of them.
fn events(environment: &Environment, name: &str, count: usize) -> Vec<String> {
    environment.wait_for(name, || {
        let output = environment.armor(&["events"]).output().unwrap();
        let lines: Vec<_> = text(&output).lines().filter(|line| line.contains(&format!(" {name} "))).map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn assert_nothing_went_wrong(environment: &Environment) {
    for wrong in ["connection-diverged", "connection-reset", "replay-lost", "mark-refused"] {
        assert_eq!(events(environment, wrong, 0), Vec::<String>::new());
    }
}

fn redis(environment: &Environment, port: u16, options: &[&str]) {
    let directory = environment.file("redis");
    std::fs::create_dir(&directory).unwrap();
    let (port, directory) = (port.to_string(), directory.display().to_string());
    // Each command is in the file before it is answered, so nothing that was answered is lost with the process.
    let mut command = vec!["redis-server", "--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", &directory];
    command.extend(["--appendonly", "yes", "--appendfsync", "always"]);
    command.extend(options);
    environment.launch("cache", &["--on-divergence", "reset"], &command);
}

/// Kills Redis, and waits until the next one has read its file: it listens before, and answers `LOADING` to what it hears by then.
fn kill_redis(environment: &Environment, client: &mut Asker) {
    environment.kill("cache");
    environment.wait_for("a Redis that has read its file", || (!client.ask(environment, "EXISTS n").starts_with("-LOADING")).then_some(()));
}

#[test]
fn redis_counts_on_over_kills_while_its_client_is_idle() {
    let environment = Environment::up();
    let port = free_port();
    redis(&environment, port, &[]);
    let mut client = Asker::start(&environment, "resp_client.py", port);
    for round in 0..4 {
        let first = round * 4 + 1;
        assert_eq!(client.ask(&environment, "INCR n"), format!(":{first}"));
        let pipelined = client.ask(&environment, "INCR n|INCR n|MULTI|INCR n|EXEC");
        assert_eq!(pipelined, format!(":{} :{} +OK +QUEUED [:{}]", first + 1, first + 2, first + 3));
        kill_redis(&environment, &mut client);
    }
    assert_eq!(client.ask(&environment, "GET n"), "16");
    for event in events(&environment, "connection-recovered", 4) {
        assert!(event.contains("replayed_bytes=0"), "{event}");
    }
    assert_nothing_went_wrong(&environment);
}

#[test]
fn a_login_a_database_and_a_name_outlive_redis() {
    let environment = Environment::up();
    let port = free_port();
    redis(&environment, port, &["--requirepass", "secret"]);
    let mut client = Asker::start(&environment, "resp_client.py", port);
    assert_eq!(client.ask(&environment, "INCR n"), "-NOAUTH Authentication required.");
    assert_eq!(client.ask(&environment, "AUTH secret|SELECT 3|CLIENT SETNAME me"), "+OK +OK +OK");
    for count in 1..=4 {
        assert_eq!(client.ask(&environment, "INCR n"), format!(":{count}"));
        kill_redis(&environment, &mut client);
        assert_eq!(client.ask(&environment, "CLIENT GETNAME"), "me");
    }
    assert_eq!(client.ask(&environment, "SELECT 0|GET n|SELECT 3|GET n"), "+OK $-1 +OK 4");
    assert_nothing_went_wrong(&environment);
}

#[test]
fn a_subscriber_is_reset_at_once_and_nothing_is_executed_again() {
    let environment = Environment::up();
    let port = free_port();
    redis(&environment, port, &[]);
    let mut client = Asker::start(&environment, "resp_client.py", port);
    assert_eq!(client.ask(&environment, "INCR n"), ":1");
    assert_eq!(client.ask(&environment, "SUBSCRIBE a"), "[subscribe a :1]");
    assert_eq!(events(&environment, "replay-lost", 1).len(), 1);
    environment.kill("cache");
    for event in events(&environment, "connection-reset", 1) {
        assert!(event.contains("reason=NoReplay"), "{event}");
    }
    let mut other = Asker::start(&environment, "resp_client.py", port);
    let count = environment.wait_for("a Redis that has read its file", || {
        Some(other.ask(&environment, "GET n")).filter(|answer| !answer.starts_with("-LOADING"))
    });
    assert_eq!(count, "1");
}

#[test]
fn an_http_client_keeps_its_connection_over_kills_between_two_requests_although_the_date_has_changed() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("file.txt"), "content").unwrap();
    let port = free_port();
    let arguments = ["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "--directory"];
    let command: Vec<&str> = ["python3"].into_iter().chain(arguments).chain([root.to_str().unwrap()]).collect();
    environment.launch("web", &["--on-divergence", "reset"], &command);
    let mut client = Asker::start(&environment, "http_client.py", port);
    let mut dates = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..3 {
        let answer = client.ask(&environment, "/file.txt");
        let parts: Vec<&str> = answer.split('|').collect();
        assert_eq!((parts[0], parts[3]), ("200", "content"), "{answer}");
        dates.push(parts[1].to_owned());
        ports.push(parts[2].to_owned());
        // A regenerated answer would now have another date.
        let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let answered = second();
        environment.wait_for("the next second", || (second() > answered).then_some(()));
        environment.kill("web");
    }
    assert!(dates[0] != dates[1] && dates[1] != dates[2], "{dates:?}");
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    for event in events(&environment, "connection-recovered", 2) {
        assert!(event.contains("replayed_bytes=0"), "{event}");
    }
    assert_nothing_went_wrong(&environment);
}

#[test]
fn an_answer_in_an_unknown_protocol_is_settled_by_silence_where_the_service_says_so() {
    let environment = Environment::up();
    let server = compile(&environment, "epoll_echo_server");
    for (name, options, replayed) in
        [("settled", &["--policy", "turn", "--settled", "0.1"][..], "replayed_bytes=0"), ("not", &[], "replayed_bytes=8")]
    {
        let port = free_port();
        environment.launch(name, options, &[&server, &port.to_string()]);
        let mut client = Asker::start(&environment, "line_client.py", port);
        assert_eq!(client.ask(&environment, "a line."), "a line.");
        let answered = Instant::now();
        environment.wait_for("silence", || (answered.elapsed() > Duration::from_secs(2)).then_some(()));
        environment.kill(name);
        let service = format!("service={name}");
        let event = environment.wait_for("the recovery", || {
            events(&environment, "connection-recovered", 0).into_iter().find(|event| event.contains(&service))
        });
        assert!(event.contains(replayed), "{event}");
        assert_eq!(client.ask(&environment, "another line."), "another line.");
    }
    assert_nothing_went_wrong(&environment);
}
