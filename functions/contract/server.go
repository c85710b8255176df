package contract

import (
	"fmt"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var server = Contract{
	Name: "server",
	check: func(f *pb.Function, r Report) {
		s := f.GetServer()
		for _, p := range serverPrograms(f) {
			checkProgram(p, r)
		}
		if image := s.GetImage(); image != "" {
			if len(s.GetBuild()) > 0 {
				r.Add("server.build", "an image is built already; take build or image away")
			}
			if strings.ContainsAny(image, " \t\r\n\x00") {
				r.Add("server.image", "%q is not the reference of an image: it holds white space", image)
			}
		}
	},
	programs: serverPrograms,
	build:    func(f *pb.Function) []string { return f.GetServer().GetBuild() },
	http2: func(f *pb.Function) bool {
		return f.GetServer().GetProtocol() == pb.ServerProtocol_SERVER_PROTOCOL_H2C
	},
}

func serverPrograms(f *pb.Function) []Program {
	return []Program{{"server.command", f.GetServer().GetCommand()}, {"server.build", f.GetServer().GetBuild()}}
}

func checkProgram(p Program, r Report) {
	if len(p.Args) > 0 && strings.TrimSpace(p.Args[0]) == "" {
		r.Add(p.Field+"[0]", "is empty; it names the program to run")
	}
	for i, a := range p.Args {
		if strings.ContainsRune(a, 0) {
			r.Add(fmt.Sprintf("%s[%d]", p.Field, i), "holds a NUL, which no argument can")
		}
	}
}
