'use strict';
// Where what ran is in the text of its cell.

const { SourceMap } = require('node:module');

// For a line and column of the code that was evaluated, both from 1, those of the cell. `head` is how
// much came before its first line; `map`, a source map in JSON, is there if it was written anew.
function placer(head, map) {
  const lines = map && new SourceMap(JSON.parse(map));
  return (line, column) => {
    const at = { line, column: line === 1 ? Math.max(column - head, 1) : column };
    const { originalLine, originalColumn } = lines?.findEntry(at.line - 1, at.column - 1) ?? {};
    if (originalLine === undefined) return at;
    return { line: originalLine + 1, column: originalColumn + 1 };
  };
}

module.exports = { placer };
