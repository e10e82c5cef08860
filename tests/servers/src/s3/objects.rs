//! Buckets, objects and uploads, and what each request does to them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::wire::{Request, Response, elements, escape};

const PAGE_SIZE: usize = 1_000;

#[derive(Debug, Clone)]
struct Object {
    content: Arc<Vec<u8>>,
    etag: String,
    modified_secs: u64,
}

impl Object {
    fn new(content: Vec<u8>) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let etag = format!("\"{:016x}{:016x}\"", hasher.finish(), content.len());
        Self { content: Arc::new(content), etag, modified_secs: now_secs() }
    }
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<u32, Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Objects {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
    pub(super) page_size: usize,
    pub(super) ignores_put_conditions: bool,
    pub(super) ignores_get_conditions: bool,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            uploads: BTreeMap::new(),
            uploads_begun: 0,
            page_size: PAGE_SIZE,
            ignores_put_conditions: false,
            ignores_get_conditions: false,
        }
    }
}

impl Objects {
    pub(super) fn create_bucket(&mut self, bucket: &str) {
        self.buckets.entry(bucket.to_owned()).or_default();
    }

    pub(super) fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let keys = self.buckets.get(bucket).into_iter().flat_map(BTreeMap::keys);
        keys.filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        Some(self.buckets.get(bucket)?.get(key)?.content.to_vec())
    }

    pub(super) fn put(&mut self, bucket: &str, key: &str, content: Vec<u8>) {
        self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), Object::new(content));
    }

    pub(super) fn delete(&mut self, bucket: &str, key: &str) {
        if let Some(objects) = self.buckets.get_mut(bucket) {
            objects.remove(key);
        }
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    /// Does what `request` asks for.
    pub(super) fn answer(&mut self, request: &Request) -> Response {
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if key.is_empty() && request.method == "PUT" {
            self.create_bucket(bucket);
            return Response::new(200);
        }
        if !self.buckets.contains_key(bucket) {
            return Response::error(404, "there is no such bucket");
        }
        let upload = request.parameter("uploadId");
        match (request.method.as_str(), key.is_empty(), upload) {
            ("HEAD", true, _) => Response::new(200),
            ("GET", true, _) => self.list(bucket, request),
            ("POST", true, _) if request.parameter("delete").is_some() => self.delete_many(bucket, request),
            ("GET" | "HEAD", false, _) => self.read(bucket, key, request),
            ("PUT", false, Some(upload)) => self.part(upload, request),
            ("PUT", false, None) => self.write(bucket, key, request),
            ("POST", false, None) if request.parameter("uploads").is_some() => self.begin(bucket, key),
            ("POST", false, Some(upload)) => self.complete(bucket, key, upload, request),
            ("DELETE", false, Some(upload)) => {
                let status = if self.uploads.remove(upload).is_some() { 204 } else { 404 };
                Response::new(status)
            }
            ("DELETE", false, None) => {
                self.delete(bucket, key);
                Response::new(204)
            }
            _ => Response::error(501, "the fake does not know this request"),
        }
    }

    fn read(&self, bucket: &str, key: &str, request: &Request) -> Response {
        let Some(object) = self.buckets.get(bucket).and_then(|objects| objects.get(key)) else {
            return Response::error(404, "there is no such key");
        };
        let condition = request.header("if-match").filter(|_| !self.ignores_get_conditions);
        if condition.is_some_and(|wanted| !matches(wanted, &object.etag)) {
            return Response::error(412, "it has another entity tag");
        }
        if request.header("if-none-match").is_some_and(|known| matches(known, &object.etag)) {
            return Response::error(304, "");
        }
        let size = object.content.len();
        let (status, range) = match request.header("range") {
            None => (200, 0..size),
            Some(range) => match byte_range(range, size) {
                Some(range) => (206, range),
                None => return Response::error(416, "there are no such bytes"),
            },
        };
        let mut response = Response::new(status)
            .with("ETag", object.etag.clone())
            .with("Last-Modified", http_date(object.modified_secs))
            .with("Content-Type", "application/octet-stream".to_owned());
        if status == 206 {
            response = response.with("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
        if request.method == "HEAD" {
            response.length = Some(range.len());
        } else {
            response.body = object.content[range].to_vec();
        }
        response
    }

    fn write(&mut self, bucket: &str, key: &str, request: &Request) -> Response {
        let Some(objects) = self.buckets.get_mut(bucket) else {
            return Response::error(404, "there is no such bucket");
        };
        if let Some(refused) = refused(objects.get(key), request).filter(|_| !self.ignores_put_conditions) {
            return refused;
        }
        let content = match request.header("x-amz-copy-source") {
            None => request.body.clone(),
            Some(source) => {
                let (from_bucket, from) = source.trim_start_matches('/').split_once('/').unwrap_or(("", ""));
                match self.get(from_bucket, from) {
                    Some(content) => content,
                    None => return Response::error(404, "there is nothing to copy"),
                }
            }
        };
        let object = Object::new(content);
        let etag = object.etag.clone();
        self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
        if request.header("x-amz-copy-source").is_some() {
            return Response::xml(format!("<CopyObjectResult><ETag>{}</ETag></CopyObjectResult>", escape(&etag)));
        }
        Response::new(200).with("ETag", etag)
    }

    fn begin(&mut self, bucket: &str, key: &str) -> Response {
        self.uploads_begun += 1;
        let id = format!("upload-{}", self.uploads_begun);
        let upload = Upload { bucket: bucket.to_owned(), key: key.to_owned(), parts: BTreeMap::new() };
        self.uploads.insert(id.clone(), upload);
        Response::xml(format!(
            "<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>\
             </InitiateMultipartUploadResult>",
            escape(key)
        ))
    }

    fn part(&mut self, upload: &str, request: &Request) -> Response {
        let number = request.parameter("partNumber").and_then(|number| number.parse().ok());
        match (self.uploads.get_mut(upload), number) {
            (Some(upload), Some(number)) => {
                let etag = Object::new(request.body.clone()).etag;
                upload.parts.insert(number, request.body.clone());
                Response::new(200).with("ETag", etag)
            }
            (None, _) => Response::error(404, "there is no such upload"),
            (_, None) => Response::error(400, "the part has no number"),
        }
    }

    fn complete(&mut self, bucket: &str, key: &str, upload: &str, request: &Request) -> Response {
        let Some(found) = self.uploads.get(upload).filter(|found| found.bucket == bucket && found.key == key) else {
            return Response::error(404, "there is no such upload");
        };
        let body = String::from_utf8_lossy(&request.body);
        let mut content = Vec::new();
        for number in elements(&body, "PartNumber") {
            match number.parse().ok().and_then(|number: u32| found.parts.get(&number)) {
                Some(part) => content.extend_from_slice(part),
                None => return Response::error(400, "there is no such part"),
            }
        }
        let objects = self.buckets.entry(bucket.to_owned()).or_default();
        if let Some(refused) = refused(objects.get(key), request) {
            return refused;
        }
        let object = Object::new(content);
        let etag = escape(&object.etag);
        objects.insert(key.to_owned(), object);
        self.uploads.remove(upload);
        Response::xml(format!(
            "<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key><ETag>{etag}</ETag>\
             </CompleteMultipartUploadResult>",
            escape(key)
        ))
    }

    fn delete_many(&mut self, bucket: &str, request: &Request) -> Response {
        let mut deleted = String::new();
        for key in elements(&String::from_utf8_lossy(&request.body), "Key") {
            self.delete(bucket, &key);
            deleted.push_str(&format!("<Deleted><Key>{}</Key></Deleted>", escape(&key)));
        }
        Response::xml(format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    /// One page of ListObjectsV2. The token is the last entry of the page before, marked as key or as prefix.
    fn list(&self, bucket: &str, request: &Request) -> Response {
        let prefix = request.parameter("prefix").unwrap_or("");
        let delimiter = request.parameter("delimiter").filter(|delimiter| !delimiter.is_empty());
        let wanted = request.parameter("max-keys").and_then(|number| number.parse().ok()).unwrap_or(self.page_size);
        let page = wanted.min(self.page_size);
        let token = request.parameter("continuation-token");
        let after = token.and_then(|token| token.strip_prefix("k:")).or(request.parameter("start-after"));
        let beyond = token.and_then(|token| token.strip_prefix("p:"));
        let mut xml = String::new();
        let (mut count, mut last, mut more) = (0, String::new(), false);
        let mut group: Option<String> = beyond.map(str::to_owned);
        for (key, object) in self.buckets.get(bucket).into_iter().flatten() {
            let passed = after.is_some_and(|after| key.as_str() <= after)
                || beyond.is_some_and(|beyond| key.as_str() < beyond)
                || group.as_ref().is_some_and(|group| key.starts_with(group.as_str()));
            if passed || !key.starts_with(prefix) {
                continue;
            }
            if count == page {
                more = true;
                break;
            }
            count += 1;
            let below = delimiter.and_then(|delimiter| key[prefix.len()..].split_once(delimiter));
            match (below, delimiter) {
                (Some((first, _)), Some(delimiter)) => {
                    let common = format!("{prefix}{first}{delimiter}");
                    xml.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&common)));
                    last = format!("p:{common}");
                    group = Some(common);
                }
                _ => {
                    xml.push_str(&format!(
                        "<Contents><Key>{}</Key><Size>{}</Size><LastModified>{}</LastModified><ETag>{}</ETag></Contents>",
                        escape(key),
                        object.content.len(),
                        iso_date(object.modified_secs),
                        escape(&object.etag)
                    ));
                    last = format!("k:{key}");
                }
            }
        }
        let next = if more {
            format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&last))
        } else {
            String::new()
        };
        Response::xml(format!(
            "<ListBucketResult><Name>{bucket}</Name><KeyCount>{count}</KeyCount><IsTruncated>{more}</IsTruncated>\
             {next}{xml}</ListBucketResult>"
        ))
    }
}

/// Why a conditional write is not done; `None` when it may be.
fn refused(existing: Option<&Object>, request: &Request) -> Option<Response> {
    if request.header("if-none-match") == Some("*") && existing.is_some() {
        return Some(Response::error(412, "it exists"));
    }
    match (request.header("if-match"), existing) {
        (Some(_), None) => Some(Response::error(404, "there is no such key")),
        (Some(wanted), Some(existing)) if !matches(wanted, &existing.etag) => {
            Some(Response::error(412, "it has another entity tag"))
        }
        _ => None,
    }
}

fn matches(condition: &str, etag: &str) -> bool {
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    condition.trim() == "*" || condition.split(',').any(|tag| bare(tag) == bare(etag))
}

/// `bytes=a-b`, `bytes=a-` and `bytes=-n`, cut to what is there.
fn byte_range(header: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => first..size.min(last + 1),
        (Some(first), None) => first..size,
        (None, Some(suffix)) => size.saturating_sub(suffix)..size,
        (None, None) => return None,
    };
    (range.start < range.end).then_some(range)
}

#[expect(clippy::disallowed_methods, reason = "a server's own time, which no test depends on")]
fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Year, month and day of a day since 1970 (Howard Hinnant's algorithm).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era_day = shifted % 146_097;
    let year_of_era = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year_of_era + shifted / 146_097 * 400 + u64::from(month <= 2), month, day)
}

fn clock(secs: u64) -> String {
    format!("{:02}:{:02}:{:02}", secs / 3_600 % 24, secs / 60 % 60, secs % 60)
}

fn iso_date(secs: u64) -> String {
    let (year, month, day) = civil(secs / 86_400);
    format!("{year}-{month:02}-{day:02}T{}.000Z", clock(secs))
}

fn http_date(secs: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = civil(secs / 86_400);
    let weekday = DAYS[(secs / 86_400 % 7) as usize];
    format!("{weekday}, {day:02} {} {year} {} GMT", MONTHS[(month - 1) as usize], clock(secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_clients_read_them() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(iso_date(951_782_400), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn ranges_are_cut_to_what_is_there() {
        assert_eq!(byte_range("bytes=2-4", 10), Some(2..5));
        assert_eq!(byte_range("bytes=8-99", 10), Some(8..10));
        assert_eq!(byte_range("bytes=-3", 10), Some(7..10));
        assert_eq!(byte_range("bytes=10-", 10), None);
    }
}
