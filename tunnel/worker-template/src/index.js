// The Worker as it is deployed: the bridge with Cloudflare's containers behind it.
//
// Here: the only import of `@cloudflare/sandbox`, and the Durable Object classes that wrangler.jsonc names. Read next:
// core.js.

import { getSandbox, parseSSEStream, Sandbox } from '@cloudflare/sandbox';

import { createBridge } from './core.js';
import { cloudflare } from './sandbox.js';

export { BridgeLeases } from './leases.js';
export { BridgeNonces } from './nonces.js';
export { BridgeRelay } from './relay/object.js';
export { Sandbox };

export default createBridge({ open: cloudflare(getSandbox, parseSSEStream) });
