//! Aligned columns, as Go's tabwriter lays them out: every cell but a line's last is padded to its
//! column's widest.

/// Rows under a heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    gap: usize,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
            gap: 1,
        }
    }

    /// With this many blanks between columns instead of one.
    pub(super) fn with_gap(self, gap: usize) -> Self {
        Self { gap, ..self }
    }

    /// A row has one cell per heading; what people may not see as empty is `-`.
    pub(super) fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(visible).collect());
    }

    /// Sorts by the cells from left to right.
    pub(super) fn sort(&mut self) {
        self.rows.sort();
    }

    /// Only the first `count` columns.
    pub(super) fn columns(mut self, count: usize) -> Self {
        self.headings.truncate(count);
        self.rows.iter_mut().for_each(|row| row.truncate(count));
        self
    }

    pub(super) fn text(&self) -> String {
        let width = |column: usize, heading: &&str| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .chain([heading.len()])
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = self
            .headings
            .iter()
            .enumerate()
            .map(|(at, h)| width(at, h))
            .collect();
        let mut text = String::new();
        self.line(&mut text, &widths, self.headings.iter().copied());
        for row in &self.rows {
            self.line(&mut text, &widths, row.iter().map(String::as_str));
        }
        text
    }

    fn line<'a>(&self, text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
        for (at, (cell, width)) in cells.zip(widths).enumerate() {
            text.push_str(cell);
            if at + 1 < widths.len() {
                let padding = width.saturating_sub(cell.chars().count()) + self.gap;
                text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        text.push('\n');
    }
}

/// Names in a mesh come from others: a control character must not reach the terminal, nor a blank cell
/// shift the columns that a script cuts out.
pub(super) fn visible(cell: String) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    if cell.chars().any(char::is_control) {
        return cell.escape_debug().to_string();
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::Table;

    fn table() -> Table {
        let mut table = Table::new(&["A", "LONG", "C"]);
        table.push(["wide cell".into(), "é".into(), String::new()]);
        table.push(["x".into(), "y\u{1b}[2J".into(), "z".into()]);
        table
    }

    #[test]
    fn columns_align_and_lines_do_not_end_in_blanks() {
        assert_eq!(
            table().text(),
            "A         LONG       C\n\
             wide cell é          -\n\
             x         y\\u{1b}[2J z\n"
        );
        assert_eq!(table().with_gap(3).columns(1).text(), "A\nwide cell\nx\n");
    }
}
