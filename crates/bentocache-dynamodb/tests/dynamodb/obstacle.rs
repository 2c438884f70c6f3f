//! A service in front of the emulator that refuses, leaves out and loses what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a request.
pub(crate) enum Fate {
    Pass,
    /// An answer of our own: status and body.
    Answer(u16, Value),
    /// Only that many items of a batch are done.
    Leave(usize),
    /// It is carried out, and its answer lost.
    Lose,
}

impl Fate {
    /// A refusal of the service.
    pub(crate) fn refuse(code: &str) -> Self {
        let code = format!("com.amazonaws.dynamodb.v20120810#{code}");
        Self::Answer(400, json!({ "__type": code, "message": "because a test says so" }))
    }
}

/// An operation, such as `GetItem`, and what was asked.
pub(crate) type Request = (String, Value);

/// One request at a time may be decided on.
type Decide = Arc<Mutex<dyn FnMut(&Request) -> Fate + Send>>;

pub(crate) struct Obstacle {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Obstacle {
    pub(crate) async fn before(
        target: SocketAddr,
        decide: impl FnMut(&Request) -> Fate + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let decide: Decide = Arc::new(Mutex::new(decide));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(client, target, Arc::clone(&decide), Arc::clone(&log)));
            }
        });
        Self { addr, seen, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests of an operation so far.
    pub(crate) fn seen(&self, operation: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(name, _)| name == operation).map(|(_, body)| body.clone()).collect()
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one request of a connection.
async fn serve(
    mut client: TcpStream,
    target: SocketAddr,
    decide: Decide,
    log: Arc<Mutex<Vec<Request>>>,
) -> Option<()> {
    let (head, body) = message(&mut client).await?;
    let operation = header(&head, "x-amz-target")?.rsplit('.').next()?.to_owned();
    let mut request = (operation, serde_json::from_slice(&body).ok()?);
    let fate = decide.lock().unwrap()(&request);
    log.lock().unwrap().push(request.clone());
    let (status, answer) = match fate {
        Fate::Answer(status, answer) => (status, answer),
        Fate::Pass => forward(target, &head, &request.1).await?,
        Fate::Lose => {
            forward(target, &head, &request.1).await?;
            return None;
        }
        Fate::Leave(most) => {
            let (left, name) = leave(&mut request.1, most);
            let (status, mut answer) = forward(target, &head, &request.1).await?;
            answer[name] = left;
            (status, answer)
        }
    };
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/x-amz-json-1.0\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        answer.len()
    );
    client.write_all((head + &answer).as_bytes()).await.ok()?;
    client.shutdown().await.ok()
}

/// Takes out of a batch what is too many, and says how the answer names it.
fn leave(request: &mut Value, most: usize) -> (Value, &'static str) {
    let tables = request["RequestItems"].as_object_mut().unwrap();
    let (table, items) = tables.iter_mut().next().unwrap();
    let (list, name) = match items {
        Value::Array(list) => (list, "UnprocessedItems"),
        other => (other["Keys"].as_array_mut().unwrap(), "UnprocessedKeys"),
    };
    let rest = list.split_off(most.min(list.len()));
    if rest.is_empty() {
        return (json!({}), name);
    }
    let rest = if name == "UnprocessedKeys" {
        json!({ table: { "Keys": rest, "ConsistentRead": true } })
    } else {
        json!({ table: rest })
    };
    (rest, name)
}

/// Status and body of what the emulator answers.
async fn forward(target: SocketAddr, head: &str, body: &Value) -> Option<(u16, Value)> {
    let body = body.to_string();
    let mut server = TcpStream::connect(target).await.ok()?;
    let mut lines: Vec<String> = head
        .lines()
        .filter(|line| !line.is_empty())
        .filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !matches!(&*name, "content-length" | "connection")
        })
        .map(str::to_owned)
        .collect();
    lines.push(format!("content-length: {}", body.len()));
    lines.push("connection: close".to_owned());
    server.write_all((lines.join("\r\n") + "\r\n\r\n" + &body).as_bytes()).await.ok()?;
    let (head, body) = message(&mut server).await?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_slice(&body).ok()?))
}

/// Head and body of a message.
async fn message(from: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if from.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).ok()?;
    let length: usize = header(&head, "content-length")?.parse().ok()?;
    while body.len() < length {
        if from.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (its_name, value) = line.split_once(':')?;
        its_name.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
