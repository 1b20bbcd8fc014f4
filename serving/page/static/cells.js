// Texts, of a field or a CSV, as the cells of a request. What they mean the service decides: only
// numbers, which JSON does not take as texts, and what says "missing" are read here, as
// artifacts/cells.py reads them.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** A column's cell from a text. missingTexts: a Set, in lower case. */
export function cellOf(column, text, missingTexts) {
  const trimmed = text.trim();
  if (missingTexts.has(trimmed.toLowerCase())) {
    // Where a missing cell is refused, in the words of the column's type.
    return column.missing === "fill" || column.type === "number" ? null : text;
  }
  if (column.type === "number" && NUMBER.test(trimmed) && Number.isFinite(Number(trimmed))) {
    return Number(trimmed);
  }
  return text;
}

/** A cell as the text of a field; a missing one is empty. */
export function textOf(cell) {
  return cell === null || cell === undefined ? "" : String(cell);
}
