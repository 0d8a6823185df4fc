// SPDX-License-Identifier: Apache-2.0
/*
 * aead_plain.c - tls/aead.c on a CPU without AES-NI
 *
 * libipsec-mb has nothing for one, and OpenSSL does it all.
 */

#include <stddef.h>

#include <intel-ipsec-mb.h>

#define alloc_mb_mgr(flags) NULL

#include "tls/aead.c"
