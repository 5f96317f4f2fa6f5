//! Just enough of HTTP/1.1 for a proxy between a client and a server that are known.

use std::io;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpStream,
};

/// An HTTP/1.1 request or answer with a `Content-Length`, byte for byte. No more is needed here.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    /// Where the head ends and the body begins.
    pub(crate) head: usize,
}

impl Message {
    pub(crate) async fn read(from: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let mut message = Self::default();
        while !message.bytes.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut message.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        message.head = message.bytes.len();
        let length = message
            .header("content-length")
            .and_then(|it| it.parse().ok());
        let mut body = from.take(length.unwrap_or(0));
        body.read_to_end(&mut message.bytes).await?;
        Ok(message)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = str::from_utf8(&self.bytes[..self.head]).ok()?;
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
    }

    /// The status of an answer.
    pub(crate) fn status(&self) -> Option<u16> {
        let line = self.bytes.strip_prefix(b"HTTP/1.1 ")?;
        str::from_utf8(line.get(..3)?).ok()?.parse().ok()
    }

    /// Is this text in the body?
    pub(crate) fn says(&self, what: &str) -> bool {
        let body = String::from_utf8_lossy(&self.bytes[self.head..]);
        body.contains(what)
    }
}
