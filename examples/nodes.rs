//! Three processes on one Redis: how each reacts to the changes of the others.
//!
//! `cargo run --release --example nodes` uses the Redis on the standard port of this machine,
//! `cargo run --release --example nodes -- redis://user:password@host:6379` another one. The
//! program starts itself three times; the children read commands and answer.

// The output is for people.
#![allow(clippy::print_stdout)]

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bentocache::redis::{Redis, RedisBus, RedisLock};
use bentocache::{BentoCache, BoxError, Memory, Store};

const HERE: &str = "redis://127.0.0.1:6379";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => direct(HERE),
        ["node", url] => run_node(url),
        [url] => direct(url),
        _ => Err("give the URL of a Redis server, or nothing".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodes: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- A node ----

/// The cache of one process of many.
async fn build(url: &str) -> bentocache::Result<BentoCache> {
    let store = Store::new()
        .l1(Memory::new().max_items(10_000))
        .l2(Redis::new(url))
        .bus(RedisBus::new(url))
        .lock(RedisLock::new(url));
    BentoCache::builder().prefix("bentocache-nodes").ttl("1m").store("main", store).build().await
}

/// Executes commands from standard input until it ends.
#[tokio::main]
async fn run_node(url: &str) -> Result<(), BoxError> {
    let bento = build(url).await?;
    let runs = Arc::new(AtomicU32::new(0));
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let start = Instant::now();
        let answer = match words[..] {
            ["set", key, value] => {
                bento.set(key, value.to_owned()).tags(["demo"]).await?;
                "stored".to_owned()
            }
            ["get", key] => match bento.get::<String>(key).await? {
                Some(value) => format!("{key} is {value}"),
                None => format!("{key} is nowhere"),
            },
            // Polls until the value differs from this one.
            ["awaits", key, old] => loop {
                match bento.get::<String>(key).await? {
                    Some(value) if value == old => {
                        tokio::time::sleep(Duration::from_micros(50)).await;
                    }
                    Some(value) => break format!("{key} is {value}"),
                    None => break format!("{key} is nowhere"),
                }
            },
            ["get_or_set", key, value] => {
                let (runs, value) = (runs.clone(), value.to_owned());
                let load = move |_| async move {
                    runs.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(300)).await; // a slow database
                    Ok::<_, BoxError>(value)
                };
                format!("{key} is {}", bento.get_or_set(key, load).tags(["demo"]).await?)
            }
            ["invalidate"] => {
                bento.delete_by_tag(["demo"]).await?;
                "invalidated".to_owned()
            }
            ["clear"] => {
                bento.clear().await?;
                "cleared".to_owned()
            }
            _ => return Err(format!("no such command: {line}").into()),
        };
        let took = start.elapsed();
        println!("{answer}, after {took:.1?} ({} runs of its factory so far)", runs.load(Relaxed));
    }
    bento.disconnect_all().await?;
    Ok(())
}

// ---- The director ----

struct Node {
    name: &'static str,
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Node {
    fn start(name: &'static str, url: &str) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["node", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (commands, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.ok_or("no output")?);
        Ok(Self { name, process, commands, answers })
    }

    fn send(&mut self, command: &str) -> Result<(), BoxError> {
        let commands = self.commands.as_mut().ok_or("it has ended")?;
        writeln!(commands, "{command}")?;
        Ok(commands.flush()?)
    }

    fn answer(&mut self) -> Result<(), BoxError> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(format!("{} has ended; is there a Redis at that URL?", self.name).into());
        }
        println!("    {}: {}", self.name, line.trim_end());
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<(), BoxError> {
        self.send(command)?;
        self.answer()
    }
}

fn direct(url: &str) -> Result<(), BoxError> {
    let names = ["node 1", "node 2", "node 3"];
    let mut nodes =
        names.into_iter().map(|name| Node::start(name, url)).collect::<Result<Vec<_>, _>>()?;
    let [one, two, three] = &mut nodes[..] else { return Err("three nodes".into()) };
    // Removes the values of an earlier run. The pause lets the message reach the other nodes: a value
    // that is being produced when the clear arrives would not be stored.
    one.ask("clear")?;
    std::thread::sleep(Duration::from_millis(200));

    println!("\nA cold key, read by all at once: one of them runs the factory.");
    for node in [&mut *one, &mut *two, &mut *three] {
        node.send("get_or_set user:1 ada")?;
    }
    for node in [&mut *one, &mut *two, &mut *three] {
        node.answer()?;
    }

    println!("\nThe same again: each reads it from its own memory.");
    for node in [&mut *one, &mut *two, &mut *three] {
        node.ask("get user:1")?;
    }

    println!("\nNode 3 changes it; the others receive a message.");
    one.send("awaits user:1 ada")?;
    two.send("awaits user:1 ada")?;
    three.ask("set user:1 grace")?;
    one.answer()?;
    two.answer()?;

    println!("\nNode 1 invalidates everything with a tag.");
    two.send("awaits user:1 grace")?;
    three.send("awaits user:1 grace")?;
    one.ask("invalidate")?;
    two.answer()?;
    three.answer()?;

    for node in &mut nodes {
        // The end of its input ends the process.
        drop(node.commands.take());
        node.process.wait()?;
    }
    Ok(())
}
