"""Follow a question through an agent.

An agent decides by itself which way a question goes. When its answer is wrong, the route
may be at fault, the search, the tool or the last call of the model. One callback handler
records every step of LangGraph and LangChain, and each step says for whom it ran.

Run it:

    python -m recipes.support_agent

The traces have these shapes. LangGraph itself adds the `chain` rows, under the names of the
graph and its nodes; every other row is a step of LangChain, named where it is called:

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

    answer-question          chain
      choose-specialist      chain
        classify-question    generation
      ask-orders             chain
        choose-tool          generation
        look-up-order        tool

    answer-briefly           chain
      fill-prompt            chain
      write-answer           generation

Try next: give `ChatOpenAI` below `streaming=True` and look at the time to first token. Then
take out `stream_usage`, and look for the tokens and the cost.
"""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import InjectedToolArg, ToolException, tool
from langchain_openai import ChatOpenAI
from langfuse import propagate_attributes
from langfuse.langchain import CallbackHandler
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import BaseModel

from common.client import connect, tracing_is_on
from common.console import show_answer, show_section, show_trace
from common.llm import chat_settings
from common.retriever import search

SORRY = "Sorry, I cannot answer at the moment."
ORDERS = {"rotterdam": {"A-1042": "was shipped and arrives on Thursday"}}  # antwerp's are down


@dataclass(frozen=True)
class Request:
    """A question, and on whose behalf it is asked; the tenant is a shop."""

    tenant: str
    user: str
    question: str


REQUESTS = (
    Request("rotterdam", "ada", "Can I return shoes after 20 days?"),
    Request("rotterdam", "bob", "Where is my order A-1042?"),
    Request("rotterdam", "cyd", "Where is my order A-9999?"),
    Request("antwerp", "dan", "Where is my order B-2001?"),
)


# %% 1. Choose the way
#
# The decision is a node of its own, so that a wrong one can be seen. A node that returns a
# `Command` needs no edge function, which would be one more row. `bind` keeps the model's
# choice one row; `with_structured_output` makes it four.


class State(TypedDict, total=False):
    """What the nodes hand on to each other."""

    question: str
    findings: list[str]
    answer: str


class Route(BaseModel):
    """What the model fills in to choose."""

    specialist: Literal["handbook", "orders"]


@cache
def chat_model() -> ChatOpenAI:
    """Return LangChain's client of the model that the settings name, real or offline.

    `langfuse.openai`, imported anywhere, wraps the openai package of the whole process: each
    call below is then recorded twice, under asyncio in a trace of its own. A product that
    uses both keeps them in two processes, or calls its models through LangChain everywhere.
    """
    # Given an address, LangChain asks for the usage of a stream only when told to.
    return ChatOpenAI(**chat_settings(), temperature=0, stream_usage=True)


async def choose_specialist(state: State) -> Command[Literal["ask-handbook", "ask-orders"]]:
    """Let the model sort the question.

    In Langfuse: select `choose-specialist`. The `goto` of its output is the decision.
    """
    instruction = (
        "Decide which specialist answers. A question about one order goes to orders. "
        "A question about returns, delivery, sizes, care or payment goes to the handbook."
    )
    model = chat_model().bind(response_format=Route).with_config(run_name="classify-question")
    reply = await model.ainvoke([("system", instruction), ("human", state["question"])])
    route = Route.model_validate_json(reply.text)
    return Command(goto="ask-orders" if route.specialist == "orders" else "ask-handbook")


# %% 2. Let a specialist find out
#
# LangChain's retrievers and tools are Langfuse's retrievers and tools. An order that nobody
# knows is an answer for the customer; a system that is down is none, and ends the graph.
# Both are an ERROR at the place where they happened.


class Handbook(BaseRetriever):
    """The search in the shop's handbook, as LangChain wants it."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        del run_manager  # nothing runs below this
        return [Document(passage.text, metadata={"id": passage.id}) for passage in search(query)]


async def ask_handbook(state: State) -> State:
    """Return the passages nearest to the question.

    In Langfuse: select `search-handbook`; the model that answers reads nothing else.
    """
    found = await Handbook(name="search-handbook").ainvoke(state["question"])
    return {"findings": [document.page_content for document in found]}


@tool("look-up-order")
async def look_up_order(order_id: str, tenant: Annotated[str, InjectedToolArg]) -> str:
    """Find out where an order is."""
    if tenant not in ORDERS:
        raise ConnectionError(f"The order system of {tenant} does not answer.")
    if order_id not in ORDERS[tenant]:
        raise ToolException(f"There is no order {order_id}.")
    return f"Order {order_id} {ORDERS[tenant][order_id]}."


async def ask_orders(state: State, runtime: Runtime[Request]) -> State:
    """Run the tool that the model asks for. It chooses the order, but never the tenant.

    In Langfuse: filter by type TOOL and level ERROR; the message says why no order came.
    """
    model = chat_model().bind_tools([look_up_order]).with_config(run_name="choose-tool")
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
# The names of the graph and its nodes are their names in Langfuse. Without `output_schema`
# the root's output would be the whole state, and a reviewer would look for the answer in it.


class Answer(TypedDict):
    """What the graph returns."""

    answer: str


Agent = CompiledStateGraph[State, Request, State, Answer]


async def synthesise_answer(state: State) -> Answer:
    """Write the answer from what the specialist found.

    In Langfuse: select `write-answer` for tokens and cost. Cached input is a bucket here
    too, with the name `input_cache_read`.
    """
    told = "Answer in one sentence, only from this:\n" + "\n".join(state["findings"])
    model = chat_model().with_config(run_name="write-answer")
    reply = await model.ainvoke([("system", told), ("human", state["question"])])
    return {"answer": reply.text}


def build_agent() -> Agent:
    """Return the graph: choose, ask one of the two, synthesise."""
    graph = StateGraph(State, Request, output_schema=Answer)
    graph.add_node("choose-specialist", choose_specialist)
    graph.add_node("ask-handbook", ask_handbook)
    graph.add_node("ask-orders", ask_orders)
    graph.add_node("synthesise-answer", synthesise_answer)
    graph.add_edge(START, "choose-specialist")
    graph.add_edge("ask-handbook", "synthesise-answer")
    graph.add_edge("ask-orders", "synthesise-answer")
    return graph.compile(name="answer-question")


# %% 4. Serve many customers at once, and say for whom
#
# The handler goes in with the call and follows it into every node. Tenant, session and user
# go around the call: each task keeps its own. The handler's own way, `langfuse_user_id` in
# the call's metadata, reaches nothing but the root under asyncio.


def on_behalf_of(request: Request, trace_id: str) -> AbstractContextManager[Any]:
    """Return a block in which every observation carries tenant, session and user.

    In Langfuse: filter by the metadata key `tenant`, or open Sessions and Users.
    """
    session = f"{request.user}-{trace_id[:8]}"
    tenant = {"tenant": request.tenant}
    return propagate_attributes(user_id=request.user, session_id=session, metadata=tenant)


async def answer_question(agent: Agent, request: Request, trace_id: str) -> str:
    """Answer in the trace with this id; say sorry where the order system is down.

    In Langfuse: the failed trace is an ERROR from the tool up to the root.
    """
    handler = CallbackHandler(trace_context={"trace_id": trace_id})
    question: State = {"question": request.question}
    with on_behalf_of(request, trace_id):
        try:
            state = await agent.ainvoke(question, {"callbacks": [handler]}, context=request)
        except ConnectionError:
            return SORRY
    return str(state["answer"])


# %% 5. Trace a plain chain the same way
#
# Without a graph, LangChain needs the same two things: the handler, and for whom.


async def answer_briefly(request: Request, trace_id: str) -> str:
    """Answer with a template and a model, joined to a chain.

    In Langfuse: select `fill-prompt`; its output is what the model was sent.
    """
    told = [("system", "Answer in one sentence:\n{passages}"), ("human", "{question}")]
    template = ChatPromptTemplate(told).with_config(run_name="fill-prompt")
    chain = template | chat_model().with_config(run_name="write-answer")
    handler = CallbackHandler(trace_context={"trace_id": trace_id})
    config: RunnableConfig = {"callbacks": [handler], "run_name": "answer-briefly"}
    passages = "\n".join(passage.text for passage in search(request.question))
    values = {"passages": passages, "question": request.question}
    with on_behalf_of(request, trace_id):
        return (await chain.ainvoke(values, config)).text


async def answer_all(trace_ids: list[str]) -> list[str]:
    """Answer all requests at the same time, and the first one by the chain as well."""
    agent = build_agent()
    pairs = zip(REQUESTS, trace_ids[:-1], strict=True)
    by_agent = [answer_question(agent, request, trace_id) for request, trace_id in pairs]
    return await asyncio.gather(*by_agent, answer_briefly(REQUESTS[0], trace_ids[-1]))


def main() -> None:
    """Four customers at once, and a chain; then each trace, drawn as it was stored."""
    langfuse = connect()
    trace_ids = [langfuse.create_trace_id() for _ in (*REQUESTS, "the chain")]
    answers = asyncio.run(answer_all(trace_ids))
    show_section("Answered at the same time, the last one by the plain chain")
    for request, answer in zip((*REQUESTS, REQUESTS[0]), answers, strict=True):
        show_answer(f"{request.user} at {request.tenant}: {request.question}", answer)

    langfuse.flush()  # hand over what is waiting before anyone looks
    if tracing_is_on():
        show_section("What was stored")
        for trace_id in trace_ids:
            show_trace(langfuse, trace_id)


if __name__ == "__main__":
    main()
