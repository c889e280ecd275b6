//! A first look at a Parquet footer (Thrift's compact protocol), before the parquet crate builds
//! the schema by recursion: a file of a few hundred kilobytes could nest deep enough to overflow
//! the stack, which no caller could catch.

/// The deepest schema that is read.
const MAX_DEPTH: usize = 64;
/// The deepest nesting of Thrift structures; Parquet's own go to about six.
const MAX_STRUCTS: usize = 24;

/// Refuses a footer whose schema is nested too deep, or that cannot be followed.
pub(super) fn check(footer: &[u8]) -> Result<(), String> {
    let mut reader = Reader { rest: footer };
    let mut deepest = 0;
    let read = reader.fields(|reader, field, kind| {
        if field == 2 && kind == LIST {
            deepest = deepest.max(reader.schema()?);
            Some(())
        } else {
            reader.skip(kind, 0)
        }
    });
    match read {
        None => Err("its footer cannot be read".into()),
        Some(()) if deepest > MAX_DEPTH => Err(format!("a schema of more than {MAX_DEPTH} levels")),
        Some(()) => Ok(()),
    }
}

const LIST: u8 = 9;
const STRUCT: u8 = 12;

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// Calls `each` with the number and type of every field of a struct; it takes the value.
    fn fields(&mut self, mut each: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            let kind = head & 0x0f;
            if kind == 0 {
                return Some(());
            }
            field = match head >> 4 {
                0 => zigzag(self.varint()?),
                delta => field.checked_add(i64::from(delta))?,
            };
            each(self, field, kind)?;
        }
    }

    /// Number and type of a list's elements.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((count, head & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_STRUCTS {
            return None;
        }
        match kind {
            // A boolean field's value is its type.
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8),
            8 => {
                let length = self.varint()?;
                self.take(length)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                // Every element takes a byte, so a lying count ends with the bytes.
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            11 => {
                let count = self.varint()?;
                if count == 0 {
                    return Some(());
                }
                let kinds = self.byte()?;
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 0x0f, depth)
                })
            }
            STRUCT => self.fields(|reader, _, kind| reader.skip(kind, depth + 1)),
            _ => None,
        }
    }

    /// An element of a list, where a boolean does take a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if matches!(kind, 1 | 2) { self.take(1) } else { self.skip(kind, depth + 1) }
    }

    /// Goes through the list of schema elements, which names each group's number of children
    /// (field 5) before the children; gives the depth of the tree.
    fn schema(&mut self) -> Option<usize> {
        let (count, kind) = self.list()?;
        if kind != STRUCT {
            return None;
        }
        let (mut open, mut deepest) = (Vec::new(), 0);
        for _ in 0..count {
            let mut children = 0;
            self.fields(|reader, field, kind| {
                if field == 5 && kind == 5 {
                    children = zigzag(reader.varint()?);
                    Some(())
                } else {
                    reader.skip(kind, 1)
                }
            })?;
            while open.last().is_some_and(|left| *left <= 0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
                deepest = deepest.max(open.len());
            }
        }
        Some(deepest)
    }
}

fn zigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer whose schema is a chain of so many groups.
    pub(crate) fn chain(depth: u32) -> Vec<u8> {
        let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
        let mut count = depth;
        while count >= 0x80 {
            footer.push(count as u8 | 0x80);
            count >>= 7;
        }
        footer.push(count as u8);
        for _ in 0..depth {
            // repetition 0, name "a", one child
            footer.extend([0x35, 0x00, 0x18, 0x01, b'a', 0x15, 0x02, 0x00]);
        }
        footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
        footer
    }

    #[test]
    fn a_schema_nested_too_deep_is_refused_before_it_is_built() {
        assert_eq!(check(&chain(60)), Ok(()));
        let refused = Err("a schema of more than 64 levels".to_string());
        assert_eq!(check(&chain(65)), refused);
        assert_eq!(check(&chain(300_000)), refused);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep.parquet");
        let footer = chain(300_000);
        let mut file = b"PAR1".to_vec();
        file.extend(&footer);
        file.extend((footer.len() as u32).to_le_bytes());
        file.extend(b"PAR1");
        std::fs::write(&path, file).unwrap();
        let error = crate::data::reader::DataFile::open(&path).unwrap_err();
        assert!(error.message().ends_with("a schema of more than 64 levels"), "{error}");
    }

    #[test]
    fn structures_without_end_are_refused() {
        assert!(check(&[0x1c; 100_000]).is_err());
        assert!(check(&[0x19, 0xf9, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(check(&[]).is_err());
    }
}
