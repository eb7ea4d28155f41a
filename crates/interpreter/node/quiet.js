'use strict';
// Runs a function of Node's that warns of being experimental, without the warning: whoever wrote the
// cell did not choose it.
function quietly(call) {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return call();
  } finally {
    process.emitWarning = emitWarning;
  }
}

module.exports = { quietly };
