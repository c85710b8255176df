package sandbox

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// nftables writes rules for one family of addresses (linux/netfilter/nf_tables.h).
type nftables struct {
	*netlinkBatch
	family byte
	own    netip.Addr
}

const nftTable = "penstock"

// register is the register that all expressions here use.
const register = unix.NFT_REG_1

func nfgen(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func (f *nftables) begin(kind uint16, flags uint16) {
	f.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|unix.NLM_F_ACK|unix.NLM_F_CREATE, nfgen(f.family, 0))
}

func (f *nftables) table() {
	f.begin(unix.NFT_MSG_NEWTABLE, 0)
	f.str(unix.NFTA_TABLE_NAME, nftTable)
}

func (f *nftables) chain(name string, hook uint32) {
	f.begin(unix.NFT_MSG_NEWCHAIN, 0)
	f.str(unix.NFTA_CHAIN_TABLE, nftTable)
	f.str(unix.NFTA_CHAIN_NAME, name)
	f.nest(unix.NFTA_CHAIN_HOOK, func() {
		f.u32(unix.NFTA_HOOK_HOOKNUM, hook)
		f.u32(unix.NFTA_HOOK_PRIORITY, 0)
	})
	f.str(unix.NFTA_CHAIN_TYPE, "filter")
}

func (f *nftables) rule(chain string, expressions func()) {
	f.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_APPEND)
	f.str(unix.NFTA_RULE_TABLE, nftTable)
	f.str(unix.NFTA_RULE_CHAIN, chain)
	f.nest(unix.NFTA_RULE_EXPRESSIONS, expressions)
}

func (f *nftables) expression(name string, data func()) {
	f.nest(unix.NFTA_LIST_ELEM, func() {
		f.str(unix.NFTA_EXPR_NAME, name)
		f.nest(unix.NFTA_EXPR_DATA, data)
	})
}

func (f *nftables) data(kind uint16, value []byte) {
	f.nest(kind, func() { f.attr(unix.NFTA_DATA_VALUE, value) })
}

func (f *nftables) compare(op uint32, value []byte) {
	f.expression("cmp", func() {
		f.u32(unix.NFTA_CMP_SREG, register)
		f.u32(unix.NFTA_CMP_OP, op)
		f.data(unix.NFTA_CMP_DATA, value)
	})
}

func (f *nftables) payload(base uint32, offset, length uint32) {
	f.expression("payload", func() {
		f.u32(unix.NFTA_PAYLOAD_DREG, register)
		f.u32(unix.NFTA_PAYLOAD_BASE, base)
		f.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		f.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

// elsewhere matches what does not go to the loopback or to the own address.
func (f *nftables) elsewhere() {
	if f.family == unix.AF_INET {
		f.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 1)
		f.compare(unix.NFT_CMP_NEQ, []byte{127})
		f.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4)
	} else {
		loopback := netip.IPv6Loopback().As16()
		f.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16)
		f.compare(unix.NFT_CMP_NEQ, loopback[:])
		f.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16)
	}
	f.compare(unix.NFT_CMP_NEQ, f.own.AsSlice())
}

func (f *nftables) protocol(op uint32, protocol byte) {
	f.expression("meta", func() {
		f.u32(unix.NFTA_META_DREG, register)
		f.u32(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO)
	})
	f.compare(op, []byte{protocol})
}

func (f *nftables) destinationPort(port uint16) {
	f.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
	f.compare(unix.NFT_CMP_EQ, binary.BigEndian.AppendUint16(nil, port))
}

func (f *nftables) immediate(dest uint32, data func()) {
	f.expression("immediate", func() {
		f.u32(unix.NFTA_IMMEDIATE_DREG, dest)
		f.nest(unix.NFTA_IMMEDIATE_DATA, data)
	})
}

// tproxy hands a packet to the listener on a port, whatever its destination.
func (f *nftables) tproxy(port uint16) {
	f.immediate(register, func() { f.attr(unix.NFTA_DATA_VALUE, binary.BigEndian.AppendUint16(nil, port)) })
	f.expression("tproxy", func() {
		f.u32(tproxyFamily, uint32(f.family))
		f.u32(tproxyPort, register)
	})
}

// Attributes of tproxy (enum nft_tproxy_attributes).
const (
	tproxyFamily = 1
	tproxyPort   = 3
)

func (f *nftables) verdict(code int32) {
	f.immediate(unix.NFT_REG_VERDICT, func() {
		f.nest(unix.NFTA_DATA_VERDICT, func() { f.u32(unix.NFTA_VERDICT_CODE, uint32(code)) })
	})
}
