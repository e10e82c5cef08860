//! As much of HTTP/1.1 as clients of an object store speak, read and written by hand, so that a fault can stop anywhere.

use std::io::{BufRead, Error, ErrorKind, Read, Result, Write};

/// Longer heads are refused.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// A request, read to its end.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Decoded, with its leading `/`.
    pub(super) path: String,
    /// Decoded, in the order of the request.
    pub(super) query: Vec<(String, String)>,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.as_str())
    }

    /// Path and query as one text.
    pub(super) fn target(&self) -> String {
        let query: Vec<String> = self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, query.join("&")) }
    }
}

/// The next request on a connection; `None` at its end.
pub(super) fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(Error::new(ErrorKind::InvalidData, "this is no request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (method, path) = (method.to_owned(), decode(path));
    let query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(&name.replace('+', " ")), decode(&value.replace('+', " "))))
        .collect();
    let headers = read_headers(&mut head)?;
    let mut request = Request { method, path, query, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length").and_then(|length| length.parse().ok()) {
        request.body = vec![0; length];
        reader.read_exact(&mut request.body)?;
    }
    Ok(Some(request))
}

fn read_headers(reader: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(headers);
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

/// The status of an answer.
pub(super) fn read_status(reader: &mut impl BufRead) -> Result<u16> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("`{}` is no answer", line.trim())))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// What `Content-Length` says when there is no body to count: the answer to a HEAD.
    pub(super) length: Option<usize>,
}

impl Response {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), length: None }
    }

    pub(super) fn xml(body: String) -> Self {
        let headers = vec![("Content-Type", "application/xml".to_owned())];
        Self { headers, body: body.into_bytes(), ..Self::new(200) }
    }

    /// An error as S3 words it.
    pub(super) fn error(status: u16, message: &str) -> Self {
        let code = match status {
            304 => return Self::new(304),
            400 => "InvalidRequest",
            403 => "AccessDenied",
            404 => "NoSuchKey",
            409 => "ConditionalRequestConflict",
            412 => "PreconditionFailed",
            416 => "InvalidRange",
            501 => "NotImplemented",
            503 => "SlowDown",
            _ => "InternalError",
        };
        let body = format!("<Error><Code>{code}</Code><Message>{}</Message></Error>", escape(message));
        Self { status, ..Self::xml(body) }
    }

    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The head and the body as they go over the wire.
    pub(super) fn encode(self) -> (Vec<u8>, Vec<u8>) {
        let reason = if self.status < 300 { "OK" } else { "No" };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !matches!(self.status, 204 | 304) {
            head.push_str(&format!("Content-Length: {}\r\n", self.length.unwrap_or(self.body.len())));
        }
        head.push_str("\r\n");
        (head.into_bytes(), self.body)
    }

    pub(super) fn write(self, writer: &mut impl Write) -> Result<()> {
        let (mut bytes, body) = self.encode();
        bytes.extend(body);
        writer.write_all(&bytes)?;
        writer.flush()
    }
}

/// Text as it stands in XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&apos;")
}

/// The texts of all elements `<name>` in `xml`.
pub(super) fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split(&close).next())
        .map(|text| {
            text.replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&apos;", "'")
                .replace("&amp;", "&")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_request_is_read_with_its_query_and_its_body() {
        let text = "PUT /b/a%20b/c?uploadId=x%2Fy&partNumber=1 HTTP/1.1\r\nContent-Length: 3\r\nIf-Match: \"q\"\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let mut reader = text.as_bytes();
        let request = read_request(&mut reader).unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/b/a b/c"));
        assert_eq!((request.parameter("uploadId"), request.header("if-match")), (Some("x/y"), Some("\"q\"")));
        assert_eq!(request.body, b"abc");
        assert_eq!(read_request(&mut reader).unwrap().unwrap().method, "GET");
        assert!(read_request(&mut reader).unwrap().is_none());
    }

    #[test]
    fn xml_is_read_as_it_was_written() {
        let key = "a&b<c>'d'";
        assert_eq!(elements(&format!("<Key>{}</Key><Key>2</Key>", escape(key)), "Key"), [key, "2"]);
    }
}
