// Some tests start the gateway by `process.execPath` and not by name.

process.execPath = process.env.SUITE_NODE;
