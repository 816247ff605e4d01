"""Follow a question through an agent.

An agent decides by itself which route a question takes. When its answer is wrong, the fault
may be in the route, the search, the tool or the last model call. One callback handler records
every step of LangGraph and LangChain, and each step says which customer it ran for.

Run it:

    python -m recipes.support_agent

The traces have these shapes, for a question about the handbook, two about orders, and one that
goes to a plain chain:

    answer-question          chain
      choose-specialist      chain
        classify-question    generation
      ask-handbook           chain
        search-handbook      retriever
      synthesise-answer      chain
        write-answer         generation

    answer-question          chain       x 2
      choose-specialist      chain
        classify-question    generation
      ask-orders             chain
        choose-tool          generation
        look-up-order        tool
      synthesise-answer      chain
        write-answer         generation

    answer-briefly           chain
      fill-prompt            chain
      write-answer           generation

Try next: give "antwerp" an order B-2001 in `ORDERS`, and watch the error disappear from the
third trace.
"""

import asyncio
import os
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import InjectedToolArg, ToolException, tool
from langchain_openai import ChatOpenAI
from langfuse import Langfuse, propagate_attributes
from langfuse.langchain import CallbackHandler
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import BaseModel

from common.client import connect
from common.console import show_answer, show_section, show_trace
from common.retriever import search

ORDERS = {"rotterdam": {"A-1042": "was shipped and arrives on Thursday"}}  # antwerp's system fails


@dataclass(frozen=True)
class Request:
    """A question, who asks it, and in which conversation; the tenant is one of the shops."""

    tenant: str
    session: str
    user: str
    question: str


REQUESTS = (
    Request("rotterdam", "chat-1", "ada", "Can I return shoes after 20 days?"),
    Request("rotterdam", "chat-2", "bob", "Where is my order A-1042?"),
    Request("antwerp", "chat-3", "cyd", "Where is my order B-2001?"),
)


# %% 1. Choose the route
#
# The decision is a node of its own, so that you can see a wrong one. A `Command` names the next
# node, because an edge function would add a row to the trace. For the same reason `bind` calls
# the model: that is one row, where `with_structured_output` would leave four.


class State(TypedDict, total=False):
    """What the nodes pass on to each other."""

    question: str
    findings: list[str]
    answer: str


class Route(BaseModel):
    """The model's choice, which it fills in."""

    specialist: Literal["ask-handbook", "ask-orders"]


@cache
def chat_model() -> ChatOpenAI:
    """Return LangChain's client for the model; key and address come from the environment.

    Do not import `langfuse.openai` in the same process: it wraps the openai package, which
    LangChain calls, and each call would be recorded a second time, in a trace of its own.
    """
    return ChatOpenAI(model=os.environ["OPENAI_MODEL"], max_completion_tokens=500, timeout=60)


async def choose_specialist(state: State) -> Command[Literal["ask-handbook", "ask-orders"]]:
    """Let the model decide who gets the question.

    In Langfuse: select `choose-specialist`. The `goto` in its output is the decision.
    """
    instruction = (
        "Decide which specialist answers. A question about one order goes to ask-orders. "
        "A question about returns, delivery, sizes, care or payment goes to ask-handbook."
    )
    model = chat_model().bind(response_format=Route).with_config(run_name="classify-question")
    reply = await model.ainvoke([("system", instruction), ("human", state["question"])])
    return Command(goto=Route.model_validate_json(reply.text).specialist)


# %% 2. Let a specialist find out
#
# A LangChain retriever or tool becomes an observation of that type. The model chooses the order
# but never the tenant: our code adds it, so no question can reach another shop's orders.


class Handbook(BaseRetriever):
    """The search in the shop's handbook, as a LangChain retriever."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(passage.text, metadata={"id": passage.id}) for passage in search(query)]


async def ask_handbook(state: State) -> State:
    """Return the passages nearest to the question.

    In Langfuse: select `search-handbook`. Its output is all that the answer can be based on.
    """
    found = await Handbook(name="search-handbook").ainvoke(state["question"])
    return {"findings": [document.page_content for document in found]}


@tool("look-up-order")
async def look_up_order(order_id: str, tenant: Annotated[str, InjectedToolArg]) -> str:
    """Find out where an order is."""
    if tenant not in ORDERS:
        raise ToolException(f"The order system of {tenant} does not answer.")
    if order_id not in ORDERS[tenant]:
        return f"There is no order {order_id}."
    return f"Order {order_id} {ORDERS[tenant][order_id]}."


async def ask_orders(state: State, runtime: Runtime[Request]) -> State:
    """Run the tool for each order that the model asks for; a failure is a finding, too.

    In Langfuse: open Cyd's trace and select `look-up-order`. Its level is ERROR, and its status
    message says why.

    In Langfuse (not on the local page): to list every failed tool call, clear the filter "Is
    Root Observation" under Tracing, then choose Type TOOL and Status ERROR.
    """
    # In chat completions, models from GPT-5.6 on accept tools only if they do not reason.
    reasons = os.environ["OPENAI_MODEL"].startswith(("gpt-5.6", "gpt-6"))
    effort: dict[str, Any] = {"reasoning_effort": "none"} if reasons else {}
    model = chat_model().bind_tools([look_up_order], **effort).with_config(run_name="choose-tool")
    reply = await model.ainvoke(state["question"])
    findings = []
    for call in reply.tool_calls:
        arguments = {**call["args"], "tenant": runtime.context.tenant}
        try:
            findings.append(await look_up_order.ainvoke(arguments))
        except ToolException as error:
            findings.append(str(error))
    return {"findings": findings or ["The question names no order."]}


# %% 3. Synthesise the answer, and join the nodes
#
# The graph and its nodes keep their names in Langfuse, and what a node returns is its output
# there. Of the whole graph we want only the answer: see `output_keys` in section 4.


async def synthesise_answer(state: State) -> State:
    """Write the answer from what the specialist found.

    In Langfuse: select `write-answer` for its prompt, its tokens and its cost.
    """
    told = "Answer in one sentence, only from this:\n" + "\n".join(state["findings"])
    model = chat_model().with_config(run_name="write-answer")
    reply = await model.ainvoke([("system", told), ("human", state["question"])])
    return {"answer": reply.text}


@cache
def build_agent() -> CompiledStateGraph[State, Request, State, State]:
    """Return the graph: choose, ask one of the two, synthesise."""
    graph = StateGraph(State, Request)
    graph.add_node("choose-specialist", choose_specialist)
    graph.add_node("ask-handbook", ask_handbook)
    graph.add_node("ask-orders", ask_orders)
    graph.add_node("synthesise-answer", synthesise_answer)
    graph.add_edge(START, "choose-specialist")
    graph.add_edge("ask-handbook", "synthesise-answer")
    graph.add_edge("ask-orders", "synthesise-answer")
    return graph.compile(name="answer-question")


# %% 4. Serve many customers at once, and record which
#
# The handler is passed with the call and follows it into every node. Tenant, session and user
# are set around the call and reach every observation; each asyncio task keeps its own.


async def answer_question(request: Request) -> tuple[str, str]:
    """Return the agent's answer, and the id of its trace.

    In Langfuse: open Users and select a customer to see what was done for them.

    In Langfuse (not on the local page): filter Tracing by the metadata key `tenant`.
    """
    handler = CallbackHandler()
    question: State = {"question": request.question}
    tenant = {"tenant": request.tenant}
    with propagate_attributes(user_id=request.user, session_id=request.session, metadata=tenant):
        answer = await build_agent().ainvoke(
            question, {"callbacks": [handler]}, context=request, output_keys="answer"
        )
    return str(answer), str(handler.last_trace_id)


# %% 5. Trace a plain chain the same way
#
# Without a graph, LangChain needs the same two things: the handler, and who is asking.


async def answer_briefly(request: Request) -> tuple[str, str]:
    """Answer with a chain of a template and a model; return the trace's id as well.

    In Langfuse: select `fill-prompt`. Its output is what was sent to the model.
    """
    handler = CallbackHandler()
    told = [("system", "Answer in one sentence:\n{passages}"), ("human", "{question}")]
    template = ChatPromptTemplate(told).with_config(run_name="fill-prompt")
    chain = template | chat_model().with_config(run_name="write-answer")
    passages = "\n".join(passage.text for passage in search(request.question))
    values = {"passages": passages, "question": request.question}
    tenant = {"tenant": request.tenant}
    with propagate_attributes(user_id=request.user, session_id=request.session, metadata=tenant):
        reply = await chain.ainvoke(values, {"callbacks": [handler], "run_name": "answer-briefly"})
    return reply.text, str(handler.last_trace_id)


async def main() -> None:
    """Serve three customers and a chain at once; then show each answer and its stored trace."""
    connect()
    langfuse = Langfuse()
    answers = await asyncio.gather(*map(answer_question, REQUESTS), answer_briefly(REQUESTS[0]))
    langfuse.flush()  # send what is waiting before anyone looks
    for request, (answer, trace_id) in zip((*REQUESTS, REQUESTS[0]), answers, strict=True):
        show_section(f"{request.user}, a customer of the shop in {request.tenant}")
        show_answer(request.question, answer)
        show_trace(trace_id)


if __name__ == "__main__":
    asyncio.run(main())
