// SPDX-License-Identifier: Apache-2.0
/*
 * aead.c - AES-GCM
 *
 * Theory of operation
 * ===================
 *
 * By Intel's libipsec-mb where the CPU has AES-NI: it takes VAES where there is
 * one, and has no cost a call to speak of. OpenSSL 3.0 is three times slower
 * with full records, and fifteen times with small ones (docs/measurements.md).
 * It is what is used on other CPUs.
 *
 * A record is sealed out of several segments, each byte of which is read once:
 * a guest may change its memory meanwhile, and what was read first counts. To
 * open one takes one piece, which is ours.
 */

#include <link.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "tls/record.h"
#include "tls/secret.h"

#define AES_256 32 /* bytes of its key */

/**
 * struct gcm - libipsec-mb's functions, for one length of keys
 */
struct gcm {
	aes_gcm_pre_t pre;
	aes_gcm_init_t init;
	aes_gcm_enc_dec_update_t update;
	aes_gcm_enc_dec_finalize_t end;
	aes_gcm_enc_dec_t open;
};

/**
 * struct aead - A cipher with its key
 * @key:	What libipsec-mb makes of it
 * @now:	The record that is sealed
 * @gcm:	Its functions; NULL: OpenSSL's @evp
 */
struct aead {
	struct gcm_key_data key;
	struct gcm_context_data now;
	const struct gcm *gcm;
	EVP_CIPHER_CTX *evp;
};

static struct gcm gcm_128, gcm_256;
static bool fast;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/**
 * let_go() - Have the code of a library leave our memory, until it is used
 * @info:	A loaded object
 * @size:	Of @info
 * @data:	An address in the library's code
 *
 * Returns: 1 for that library, which ends the search; 0 for others
 */
static int let_go(struct dl_phdr_info *info, size_t size, void *data)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t wanted = (uintptr_t)data;

	(void)size;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t from = info->dlpi_addr + p->p_vaddr;
		uintptr_t to = from + p->p_memsz;

		if (p->p_type != PT_LOAD || !(p->p_flags & PF_X) ||
		    p->p_flags & PF_W || wanted < from || wanted >= to)
			continue;
		from &= ~(page - 1);
		/* clean pages of a file: read again when they are needed */
		madvise((void *)from, to - from, MADV_DONTNEED);
		return 1;
	}
	return 0;
}

/**
 * look() - Find out which functions this CPU is to use
 *
 * The manager is for what we don't use, so it doesn't stay. To make one tests
 * all ciphers that the library has: 3 MB of code, of which AES-GCM is little.
 */
static void look(void)
{
	IMB_MGR *m = alloc_mb_mgr(0);
	IMB_ARCH arch = IMB_ARCH_NONE;

	if (!m)
		return;
	init_mb_mgr_auto(m, &arch);
	fast = arch >= IMB_ARCH_SSE && !imb_get_errno(m);
	gcm_128 = (struct gcm){
	    .pre = m->gcm128_pre,
	    .init = m->gcm128_init,
	    .update = m->gcm128_enc_update,
	    .end = m->gcm128_enc_finalize,
	    .open = m->gcm128_dec,
	};
	gcm_256 = (struct gcm){
	    .pre = m->gcm256_pre,
	    .init = m->gcm256_init,
	    .update = m->gcm256_enc_update,
	    .end = m->gcm256_enc_finalize,
	    .open = m->gcm256_dec,
	};
	free_mb_mgr(m);
	dl_iterate_phdr(let_go, (void *)(uintptr_t)gcm_128.pre);
}

/**
 * aead_new() - Make a cipher
 * @key:	Its key
 * @len:	Bytes of it, 16 or 32
 * @seals:	It seals, else it opens
 *
 * Returns: it; NULL if out of memory
 */
struct aead *aead_new(const uint8_t *key, size_t len, bool seals)
{
	struct aead *a = secret_new(sizeof(*a));

	if (!a)
		return NULL;
	pthread_once(&once, look);
	if (fast) {
		a->gcm = len == AES_256 ? &gcm_256 : &gcm_128;
		a->gcm->pre(key, &a->key);
		return a;
	}
	a->evp = EVP_CIPHER_CTX_new();
	if (!a->evp || EVP_CipherInit_ex(a->evp,
					 len == AES_256 ? EVP_aes_256_gcm()
							: EVP_aes_128_gcm(),
					 NULL, key, NULL, seals) != 1) {
		aead_free(a);
		return NULL;
	}
	return a;
}

/**
 * aead_free() - Forget a cipher and its key
 * @a:		Cipher, or NULL
 */
void aead_free(struct aead *a)
{
	if (!a)
		return;
	EVP_CIPHER_CTX_free(a->evp);
	secret_free(a, sizeof(*a));
}

/**
 * aead_begin() - Begin to seal
 * @a:		Cipher that seals
 * @nonce:	TLS_IV bytes, never the same ones again
 * @aad:	What is authenticated only
 * @len:	Bytes of it
 *
 * Returns: false if OpenSSL fails
 */
bool aead_begin(struct aead *a, const uint8_t *nonce, const uint8_t *aad,
		size_t len)
{
	int n;

	if (a->gcm) {
		a->gcm->init(&a->key, &a->now, nonce, aad, len);
		return true;
	}
	return EVP_EncryptInit_ex(a->evp, NULL, NULL, NULL, nonce) == 1 &&
	       EVP_EncryptUpdate(a->evp, NULL, &n, aad, (int)len) == 1;
}

/**
 * aead_update() - Seal bytes
 * @a:		Cipher, begun
 * @out:	Room for as many
 * @in:		Bytes, each read once
 * @len:	How many
 *
 * Returns: false if OpenSSL fails
 */
bool aead_update(struct aead *a, uint8_t *out, const void *in, size_t len)
{
	int n;

	if (!len)
		return true;
	if (a->gcm) {
		a->gcm->update(&a->key, &a->now, out, in, len);
		return true;
	}
	return EVP_EncryptUpdate(a->evp, out, &n, in, (int)len) == 1;
}

/**
 * aead_end() - Be done with sealing
 * @a:		Cipher, begun
 * @ret_tag:	TLS_TAG bytes
 *
 * Returns: false if OpenSSL fails
 */
bool aead_end(struct aead *a, uint8_t *ret_tag)
{
	int n;

	if (a->gcm) {
		a->gcm->end(&a->key, &a->now, ret_tag, TLS_TAG);
		return true;
	}
	return EVP_EncryptFinal_ex(a->evp, ret_tag, &n) == 1 &&
	       EVP_CIPHER_CTX_ctrl(a->evp, EVP_CTRL_AEAD_GET_TAG, TLS_TAG,
				   ret_tag) == 1;
}

/**
 * aead_open() - Open bytes where they are
 * @a:		Cipher that opens
 * @nonce:	TLS_IV bytes
 * @aad:	What is authenticated only
 * @aad_len:	Bytes of it
 * @data:	Ciphertext; plaintext afterwards
 * @len:	Bytes of it
 * @tag:	TLS_TAG bytes
 *
 * Returns: false if the tag is wrong: then @data is not to be believed
 */
bool aead_open(struct aead *a, const uint8_t *nonce, const uint8_t *aad,
	       size_t aad_len, uint8_t *data, size_t len, const uint8_t *tag)
{
	uint8_t seen[TLS_TAG];
	int n;

	if (a->gcm) {
		a->gcm->open(&a->key, &a->now, data, data, len, nonce, aad,
			     aad_len, seen, TLS_TAG);
		return !CRYPTO_memcmp(seen, tag, TLS_TAG);
	}
	memcpy(seen, tag, TLS_TAG);
	return EVP_DecryptInit_ex(a->evp, NULL, NULL, NULL, nonce) == 1 &&
	       EVP_DecryptUpdate(a->evp, NULL, &n, aad, (int)aad_len) == 1 &&
	       EVP_DecryptUpdate(a->evp, data, &n, data, (int)len) == 1 &&
	       EVP_CIPHER_CTX_ctrl(a->evp, EVP_CTRL_AEAD_SET_TAG, TLS_TAG,
				   seen) == 1 &&
	       EVP_DecryptFinal_ex(a->evp, data + len, &n) == 1;
}
