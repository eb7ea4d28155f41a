'use strict';
// Makes this thread ready to be terminated in the midst of whatever it does.

// Node counts the callbacks that it is within, timers for example, and ends itself when one has gone
// without being counted out, as those do that are terminated. This is what makes it forget them after an
// error that nobody has caught.
function forgetCallbacks() {
  const { emit } = process;
  process.emit = () => true;
  try {
    process._fatalException(new Error('the cell was interrupted'));
  } finally {
    process.emit = emit;
  }
}

module.exports = { forgetCallbacks };
